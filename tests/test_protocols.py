"""Every protocol's promises, on data sets of any make-up."""

import re
import sys
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from common.data import PROTOCOLS, OneClassDataModule, Splits, parse_protocol
from common.data.splitting import class_numbers, split
from common.errors import InputError

quick = settings(max_examples=50, deadline=None)

NAMES = sorted(PROTOCOLS)
NOT_IN_SAMPLE = [name for name in NAMES if name != "in_sample"]
DISJOINT = [name for name in NOT_IN_SAMPLE if name != "no_split"]


class World(NamedTuple):
    targets: np.ndarray
    official_test: np.ndarray
    normal: list[int]

    @property
    def is_normal(self):
        return np.isin(self.targets, self.normal)

    def split(self, name, **options):
        return PROTOCOLS[name](*self, **options)

    def classes(self, indices):
        return set(self.targets[indices].tolist())


def world(counts, normal, seed=0):
    """`counts` holds (training samples, official test samples) for each class; the samples are shuffled."""
    targets = np.concatenate([np.full(train + test, k) for k, (train, test) in enumerate(counts)])
    official_test = np.concatenate([np.arange(train + test) >= train for train, test in counts])
    order = np.random.default_rng(seed).permutation(len(targets))
    return World(targets[order], official_test[order], normal)


@st.composite
def worlds(draw):
    """Two to six classes, one to all but one of them normal, every class in both official parts."""
    n_classes = draw(st.integers(2, 6))
    counts = draw(st.lists(st.tuples(st.integers(3, 40), st.integers(1, 20)), min_size=n_classes, max_size=n_classes))
    normal = draw(st.lists(st.integers(0, n_classes - 1), min_size=1, max_size=n_classes - 1, unique=True))
    return world(counts, normal, draw(st.integers(0, 99)))


def split_if_enough(world, name, **options):
    """Data sets with too few anomalies for what is asked are passed over."""
    try:
        return world.split(name, **options)
    except InputError as error:
        assume(not re.search(r"needs \d+ anomalies", str(error)))
        raise


fractions = st.floats(0, 0.6)
percents = st.integers(0, 99).map(lambda percent: percent / 100)  # their counts follow in whole numbers, without rounding
seeds = st.integers(0, 2**32 - 1)
BIG = world([(300, 100)] * 4, normal=[1])


@pytest.mark.parametrize("name", NAMES)
@quick
@given(worlds(), fractions, seeds)
def test_training_is_normal_unless_contamination_is_asked_for(name, world, val_fraction, seed):
    splits = split_if_enough(world, name, val_fraction=val_fraction, contamination=0, seed=seed)
    assert world.is_normal[splits.train].all()
    assert world.is_normal[splits.val].all()
    assert len(splits.train) > 0


@pytest.mark.parametrize("name", NAMES)
@quick
@given(worlds(), fractions, st.floats(0, 0.2), seeds)
def test_parts_are_ascending_indices_without_repetition(name, world, val_fraction, contamination, seed):
    splits = split_if_enough(world, name, val_fraction=val_fraction, contamination=contamination, seed=seed)
    for part in splits:
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()
        assert not len(part) or 0 <= part[0] <= part[-1] < len(world.targets)


@pytest.mark.parametrize("name", DISJOINT)
@quick
@given(worlds(), fractions, st.floats(0, 0.3), seeds)
def test_training_validation_and_test_share_nothing(name, world, val_fraction, contamination, seed):
    train, val, test = split_if_enough(world, name, val_fraction=val_fraction, contamination=contamination, seed=seed)
    assert len(np.unique(np.concatenate([train, val, test]))) == len(train) + len(val) + len(test)


@quick
@given(worlds(), fractions, st.floats(0, 0.05), seeds)
def test_in_sample_tests_on_the_pool_that_it_trains_on(world, val_fraction, contamination, seed):
    train, val, test = split_if_enough(world, "in_sample", val_fraction=val_fraction, contamination=contamination, seed=seed)
    np.testing.assert_array_equal(val, test)
    assert set(train) <= set(test)
    assert len(test) - len(train) == round(val_fraction * len(test))
    assert set(np.flatnonzero(world.is_normal & ~world.official_test)) <= set(test)
    assert not world.official_test[test].any()


@pytest.mark.parametrize("name", NOT_IN_SAMPLE)
@quick
@given(worlds(), fractions, st.floats(0, 0.05), seeds)
def test_validation_is_the_wanted_share_of_the_normal_samples(name, world, val_fraction, contamination, seed):
    train, val, _ = split_if_enough(world, name, val_fraction=val_fraction, contamination=contamination, seed=seed)
    assert world.is_normal[val].all()
    assert len(val) == round(val_fraction * (len(val) + world.is_normal[train].sum()))


@quick
@given(worlds(), fractions, seeds)
def test_standard_uses_the_whole_official_split(world, val_fraction, seed):
    train, val, test = world.split("standard", val_fraction=val_fraction, seed=seed)
    np.testing.assert_array_equal(test, np.flatnonzero(world.official_test))
    np.testing.assert_array_equal(np.sort(np.append(train, val)), np.flatnonzero(world.is_normal & ~world.official_test))
    assert world.classes(test) == world.classes(slice(None))


@quick
@given(worlds(), fractions, percents, seeds, st.data())
def test_n_train_draws_training_samples_and_changes_no_test(world, val_fraction, contamination, seed, data):
    normals = np.flatnonzero(world.is_normal & ~world.official_test)
    n_train = data.draw(st.integers(2, len(normals)))
    options = {"val_fraction": val_fraction, "contamination": contamination, "seed": seed}
    train, val, test = split_if_enough(world, "standard", n_train=n_train, **options)
    drawn = np.append(train[world.is_normal[train]], val)
    assert len(drawn) == n_train
    assert set(drawn) <= set(normals)
    assert len(val) == round(val_fraction * n_train)
    assert len(train) - world.is_normal[train].sum() == round(100 * contamination) * n_train // 100
    np.testing.assert_array_equal(test, np.flatnonzero(world.official_test))
    if n_train == len(normals):
        np.testing.assert_array_equal(train, world.split("standard", **options).train)


def test_n_train_is_drawn_by_the_seed_and_not_from_the_front():
    drawn = [BIG.split("standard", n_train=30, val_fraction=0, seed=seed).train for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert len(np.intersect1d(drawn[0], drawn[2])) < 15
    assert drawn[0].max() > np.flatnonzero(BIG.is_normal & ~BIG.official_test)[200]


@pytest.mark.parametrize("n_train", [0, -1, 301])
def test_n_train_out_of_range(n_train):
    with pytest.raises(InputError, match=f"n_train must lie between 1 and the 300 normal training samples, not {n_train}"):
        BIG.split("standard", n_train=n_train)


@pytest.mark.parametrize("name", ["standard", "proportion"])
@quick
@given(worlds(), fractions, st.floats(0, 0.2), seeds)
def test_official_test_samples_are_only_tested_on(name, world, val_fraction, contamination, seed):
    train, val, test = split_if_enough(world, name, val_fraction=val_fraction, contamination=contamination, seed=seed)
    assert not world.official_test[np.append(train, val)].any()
    assert world.official_test[test].all()


@quick
@given(worlds(), fractions, seeds)
def test_balanced_is_eighty_to_twenty_with_as_many_anomalies(world, val_fraction, seed):
    train, val, test = split_if_enough(world, "balanced", val_fraction=val_fraction, seed=seed)
    tested = test[world.is_normal[test]]
    normals = world.is_normal.sum()
    assert abs(len(train) + len(val) - 0.8 * normals) <= 0.5
    np.testing.assert_array_equal(np.sort(np.concatenate([train, val, tested])), np.flatnonzero(world.is_normal))
    assert len(test) == 2 * len(tested)


def test_balanced_pools_the_official_parts():
    train, val, test = BIG.split("balanced", val_fraction=0.2)
    for part in (train, val, test):
        assert set(BIG.official_test[part]) == {False, True}


@pytest.mark.parametrize("name", ["proportion", "no_split"])
@quick
@given(worlds(), st.floats(0.01, 0.9), seeds)
def test_the_share_is_met_to_within_one_sample(name, world, share, seed):
    test = split_if_enough(world, name, share=share, seed=seed).test
    normals = world.is_normal[test].sum()
    assert normals == (world.is_normal & (world.official_test == (name == "proportion"))).sum()
    assert abs(len(test) - normals - share * len(test)) <= 0.5 + 1e-9


@quick
@given(worlds(), fractions, percents, st.none() | st.integers(1, 50), seeds)
def test_no_split_tests_the_normals_that_it_trains_on(world, val_fraction, contamination, limit, seed):
    first = [np.flatnonzero((world.targets == k) & ~world.official_test)[:limit] for k in world.normal]
    normals = set(np.concatenate(first))
    assume(round(val_fraction * len(normals)) < len(normals))  # a limit of 1 may leave nothing to train on
    options = {"val_fraction": val_fraction, "contamination": contamination, "limit": limit, "seed": seed}
    train, val, test = split_if_enough(world, "no_split", **options)
    assert {i for i in test if world.is_normal[i]} == normals == {i for i in [*train, *val] if world.is_normal[i]}
    assert not set(train) & set(val)
    contaminants = set(train) - normals
    assert set(test) - normals == set(np.flatnonzero(~world.is_normal & ~world.official_test)) - contaminants
    assert len(contaminants) == round(100 * contamination) * len(normals) // 100


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_out_of_range(limit):
    with pytest.raises(InputError, match=f"limit, .* must be at least 1, not {limit}"):
        BIG.split("no_split", limit=limit)


@pytest.mark.parametrize("name", NAMES)
@quick
@given(worlds(), fractions, percents, seeds)
def test_contamination_counts_from_the_normal_samples_before_hold_out(name, world, val_fraction, contamination, seed):
    pooled = name in {"balanced", "hold_out"}
    free = np.full(len(world.targets), True) if pooled else ~world.official_test
    normals, strangers = (world.is_normal & free).sum(), (~world.is_normal & free).sum()
    to_train = round(0.8 * normals) if pooled else normals
    wanted = round(100 * contamination) * to_train // 100
    assume(wanted <= strangers - (normals - to_train))
    options = {"share": 0.01} if name == "proportion" else {}
    train, val, _ = world.split(name, val_fraction=val_fraction, contamination=contamination, seed=seed, **options)
    pool = val if name == "in_sample" else train
    assert (~world.is_normal[pool]).sum() == wanted


@pytest.mark.parametrize("name", NAMES)
@quick
@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_the_seed_makes_the_split(name, seed, other):
    assume(seed != other)

    def train(s):
        return BIG.split(name, val_fraction=0.5, contamination=0.1, seed=s).train.tolist()

    assert train(seed) == train(seed)
    assert train(seed) != train(other)


@pytest.mark.parametrize("name", ["balanced", "proportion", "no_split"])
def test_the_seed_chooses_the_tested_anomalies(name):
    options = {} if name == "balanced" else {"share": 0.3}
    tests = [BIG.split(name, seed=seed, **options).test for seed in (0, 0, 1)]
    anomalies = [test[~BIG.is_normal[test]].tolist() for test in tests]
    assert anomalies[0] == anomalies[1] != anomalies[2]


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_chooses_the_contaminants(name):
    """They are drawn from all anomalies, not the first ones of the data set, which may be of one class."""
    options = {"share": 0.3} if name == "proportion" else {}
    splits = [BIG.split(name, contamination=0.1, seed=seed, **options) for seed in (0, 0, 1)]
    parts = [part.val if name == "in_sample" else part.train for part in splits]
    contaminants = [part[~BIG.is_normal[part]].tolist() for part in parts]
    assert contaminants[0] == contaminants[1] != contaminants[2]
    assert BIG.classes(contaminants[0]) == {0, 2, 3}


def test_in_sample_holds_out_outliers_too():
    """A third of the pool is anomalous, and so is a third of its part without gradients."""
    train, pool, _ = BIG.split("in_sample", val_fraction=0.5, contamination=0.5)
    for part in (train, np.setdiff1d(pool, train)):
        assert (~BIG.is_normal[part]).mean() == pytest.approx(1 / 3, abs=0.06)


@pytest.mark.parametrize("name", NAMES)
def test_a_normal_class_that_is_named_twice_counts_once(name):
    options = {"share": 0.3} if name == "proportion" else {}
    once, twice = (BIG._replace(normal=normal).split(name, **options) for normal in ([1], [1, 1]))
    for one, other in zip(once, twice, strict=True):
        np.testing.assert_array_equal(one, other)


def test_val_fraction_of_zero_holds_nothing_out():
    for name in NOT_IN_SAMPLE:
        assert len(BIG.split(name, val_fraction=0).val) == 0


@pytest.mark.parametrize("name", NAMES)
def test_several_normal_classes_are_all_trained_on(name):
    several = world([(90, 40)] * 4, normal=[0, 2])
    splits = several.split(name, contamination=0)
    assert several.classes(splits.train) == {0, 2}
    if name != "in_sample":
        assert several.classes(splits.test) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", NAMES)
@quick
@given(st.lists(st.sampled_from([0, 2, 3]), min_size=1, unique=True), st.floats(0.05, 0.3), seeds)
def test_anomalous_restricts_contamination_and_test(name, anomalous, contamination, seed):
    options = {"share": 0.3} if name == "proportion" else {}
    splits = BIG.split(name, anomalous=anomalous, contamination=contamination, seed=seed, **options)
    for part in splits:
        assert BIG.classes(part) - {1} <= set(anomalous)
    assert not BIG.is_normal[splits.test].all()
    if name == "standard":
        assert BIG.classes(splits.test) == {1, *anomalous}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("contamination", [-0.1, 1.0, 2.0, float("nan")])
def test_contamination_out_of_range(name, contamination):
    with pytest.raises(InputError, match=rf"contamination must lie in \[0, 1\), not {contamination}"):
        BIG.split(name, contamination=contamination)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("val_fraction", [-0.1, 1.0, float("nan")])
def test_val_fraction_out_of_range(name, val_fraction):
    with pytest.raises(InputError, match=rf"val_fraction must lie in \[0, 1\), not {val_fraction}"):
        BIG.split(name, val_fraction=val_fraction)


@pytest.mark.parametrize("name", ["proportion", "no_split"])
@pytest.mark.parametrize("share", [-0.1, 0.0, 1.0, float("nan")])
def test_share_out_of_range(name, share):
    with pytest.raises(InputError, match=rf"share, .* must lie in \(0, 1\), not {share}"):
        BIG.split(name, share=share)


@pytest.mark.parametrize("name", ["standard", "proportion"])
@pytest.mark.parametrize(("anomalies", "advised"), [(6, "balanced"), (5, "hold_out"), (0, "no_split")])
def test_no_official_test_set(name, anomalies, advised):
    """The advice depends on the number of anomalies: ``balanced`` would test 6 of 30 normal samples."""
    with pytest.raises(InputError, match=f"needs a data set with an official test set: use the protocol '{advised}'"):
        world([(30, 0), (anomalies, 0)], normal=[0]).split(name)


@pytest.mark.parametrize("name", ["balanced", "in_sample", "no_split"])
def test_no_official_test_set_is_needed(name):
    without = world([(30, 0)] * 3, normal=[1])
    assert len(without.split(name, contamination=0.1).test) > 0


@pytest.mark.parametrize("name", NAMES)
def test_no_sample_of_the_normal_class(name):
    with pytest.raises(InputError, match=r"no sample belongs to the normal class 7\+9"):
        world([(30, 30)] * 3, normal=[7, 9]).split(name)


@pytest.mark.parametrize("name", ["standard", "proportion", "in_sample", "no_split"])
def test_normal_samples_in_the_official_test_set_only(name):
    with pytest.raises(InputError, match="nothing is left to train on: 0 normal samples"):
        world([(30, 30), (0, 30)], normal=[1]).split(name, contamination=0)


def test_everything_held_out():
    with pytest.raises(InputError, match=r"nothing is left to train on: 3 normal samples and val_fraction 0\.9"):
        world([(3, 3), (30, 30)], normal=[0]).split("standard", val_fraction=0.9)


@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_is_normal_and_anomalous(name):
    with pytest.raises(InputError, match=r"cannot be both normal and anomalous: \[1\]"):
        BIG.split(name, anomalous=[1, 2])


@pytest.mark.parametrize("name", NAMES)
def test_too_few_anomalies_to_contaminate(name):
    few = world([(100, 30), (9, 50)], normal=[0])
    with pytest.raises(InputError, match=r"contamination 0\.9 needs \d+ anomalies, not \d+"):
        few.split(name, contamination=0.9)


def test_too_few_anomalies_to_balance():
    with pytest.raises(InputError, match="needs 20 anomalies, but the data set has only 19"):
        world([(100, 0), (19, 0)], normal=[0]).split("balanced")


def test_too_few_anomalies_for_the_share():
    with pytest.raises(InputError, match=r"share=0\.8 needs 40 anomalies, not 39"):
        world([(50, 10), (50, 39)], normal=[0]).split("proportion", share=0.8)
    with pytest.raises(InputError, match=r"share=0\.8 needs 40 anomalies, not 39"):
        world([(50, 10), (44, 50)], normal=[0]).split("no_split", share=0.8, limit=10, contamination=0.5)


def test_just_enough_anomalies():
    assert len(world([(100, 0), (20, 0)], normal=[0]).split("balanced").test) == 40
    assert len(world([(50, 10), (50, 40)], normal=[0]).split("proportion", share=0.8).test) == 50
    assert len(world([(100, 30), (90, 50)], normal=[0]).split("standard", val_fraction=0, contamination=0.9).train) == 190


@st.composite
def protocol_arguments(draw):
    name = draw(st.sampled_from(NAMES))
    options = {
        "val_fraction": st.floats(0, 0.9),
        "contamination": st.floats(0, 0.05),
        "anomalous": st.lists(st.sampled_from([0, 2, 3]), min_size=1, unique=True),
    }
    if name in {"proportion", "no_split"}:
        options["share"] = st.floats(0.01, 0.4)
    if name == "no_split":
        options["limit"] = st.integers(15, 400)
    if name == "standard":
        options["n_train"] = st.integers(15, 300)
    return {"protocol": name, **draw(st.fixed_dictionaries({}, optional=options))}


@quick
@given(protocol_arguments())
def test_what_is_written_is_parsed_and_runs(arguments):
    options = {key: value for key, value in arguments.items() if key != "protocol"}
    written = [f"{key}={'+'.join(map(str, value)) if key == 'anomalous' else value}" for key, value in options.items()]
    texts = {"anomalous": "+".join(map(str, arguments["anomalous"]))} if "anomalous" in arguments else {}
    assert parse_protocol(",".join([arguments["protocol"], *written])) == arguments | texts
    assert len(BIG.split(arguments["protocol"], **options).train) > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown protocol ''"),
        ("Standard", "unknown protocol 'Standard': choose from standard, balanced, proportion, in_sample"),
        ("standard,share=0.5", "has no option 'share'; its options: val_fraction, contamination, anomalous"),
        ("standard,limit=3", "has no option 'limit'"),
        ("no_split,limit=1.5", "'1.5' is not a valid limit"),
        ("standard,n_train=1.5", "'1.5' is not a valid n_train"),
        ("proportion,n_train=3", "has no option 'n_train'"),
        ("standard,seed=1", "has no option 'seed'"),
        ("standard,", "has no option ''"),
        ("standard,contamination", "'' is not a valid contamination in protocol 'standard,contamination'"),
        ("standard,contamination=much", "'much' is not a valid contamination"),
        ("no_such_module:f", "'no_such_module:f' cannot be imported: ModuleNotFoundError"),
        ("math:f", "there is no 'math:f': the module math has no function 'f'"),
        ("math:pi", "the module math has no function 'pi'"),
        (":f", "':f' cannot be imported"),
    ],
)
def test_what_cannot_be_parsed(text, message):
    with pytest.raises(InputError, match=message):
        parse_protocol(text)


# Functions of a user's own


@pytest.fixture
def function(monkeypatch):
    """Puts a function into an importable module, and returns its name."""

    def put(protocol):
        monkeypatch.setitem(sys.modules, "my_protocols", SimpleNamespace(split=protocol))
        return "my_protocols:split"

    return put


def every_other(targets, official_test, normal, *, seed, step=2, val_fraction=0.0):
    normals = np.flatnonzero(np.isin(targets, normal))
    n_val = round(val_fraction * len(normals))
    return Splits(normals[n_val::step], normals[:n_val], np.arange(len(targets)))


def test_a_function_gets_data_seed_and_options(function):
    called = {}

    def protocol(targets, official_test, normal, seed=0, **options):
        called.update(targets=targets, official_test=official_test, normal=normal, seed=seed, **options)
        return np.array([5, 3]), [], np.array([9, 1, 9])

    name = function(protocol)
    options = {"a": 3, "c": "text"}
    assert parse_protocol(f"{name},a=3,c=text") == {"protocol": name, **options}
    splits = split(name, *BIG, seed=7, options=options)
    assert [part.tolist() for part in splits] == [[3, 5], [], [1, 9]]
    assert all(part.dtype == np.int64 for part in splits)
    assert called["targets"] is BIG.targets
    assert called["official_test"] is BIG.official_test
    assert {key: called[key] for key in ("normal", "seed", "a", "c")} == {"normal": [1], "seed": 7, **options}


def test_a_function_makes_a_data_modules_splits(function):
    name = function(every_other)
    data = OneClassDataModule(normal=3, protocol=f"{name},step=3,val_fraction=0.5", val_fraction=0.1)
    threes = np.flatnonzero(data.data.targets == 3)
    n_val = round(0.5 * len(threes))
    assert data.splits.train.tolist() == threes[n_val::3].tolist()
    assert data.splits.val.tolist() == threes[:n_val].tolist()
    assert len(data.splits.test) == 1797


def test_a_function_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "protocols_of_mine.py").write_text(
        "def all_of_it(targets, official_test, normal, seed=0):\n    return [range(len(targets))] * 3\n"
    )
    assert len(split("protocols_of_mine:all_of_it", *BIG).train) == 1600
    (tmp_path / "broken_protocols.py").write_text("def f(:\n")
    with pytest.raises(InputError, match="'broken_protocols:f' cannot be imported: SyntaxError") as error:
        split("broken_protocols:f", *BIG)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, r"must return Splits\(train, val, test\)"),
        (([0], [1]), "returns 2 parts instead of train, val and test"),
        (([], [1], [2]), "leaves nothing to train on"),
        (([0], [1], [1600]), "returns test indices outside of the 1600 samples"),
        (([0], [-1], [2]), "returns val indices outside"),
        (([0.5], [1], [2]), r"returns train as \(1,\) float64: give \(n,\) integer indices"),
        ((BIG.is_normal, [1], [2]), r"returns train as \(1600,\) bool"),
        (([[0]], [1], [2]), r"returns train as \(1, 1\) int64"),
    ],
)
def test_a_function_that_returns_no_splits(function, result, message):
    with pytest.raises(InputError, match=message):
        split(function(lambda targets, official_test, normal, seed: result), *BIG)


def test_a_function_that_cannot_be_called_so(function):
    with pytest.raises(InputError, match=r"called as function\(targets, official_test, normal, seed=0, \*\*options\): .*seed"):
        split(function(lambda targets, official_test, normal: None), *BIG)
    with pytest.raises(InputError, match="has no option 'share'; its options: step, val_fraction"):
        parse_protocol(f"{function(every_other)},share=0.3")


FEW = world([(60, 0), (8, 0)], normal=[0])


def test_hold_out_tests_all_anomalies_that_there_are():
    train, val, test = FEW.split("hold_out", val_fraction=0.25)
    assert [len(train), len(val), len(test)] == [36, 12, 20]
    assert FEW.is_normal[np.append(train, val)].all()
    assert set(test[~FEW.is_normal[test]]) == set(np.flatnonzero(~FEW.is_normal))
    everything = np.sort(np.concatenate([train, val, test]))
    np.testing.assert_array_equal(everything, np.arange(68))


def test_hold_out_trains_as_balanced_does():
    ours, theirs = (BIG.split(name, seed=3) for name in ("hold_out", "balanced"))
    np.testing.assert_array_equal(ours.train, theirs.train)
    np.testing.assert_array_equal(ours.val, theirs.val)
    assert set(theirs.test) < set(ours.test)


def test_contaminants_are_not_tested():
    train, _, test = FEW.split("hold_out", contamination=0.1)
    assert (~FEW.is_normal[train]).sum() == 4
    assert (~FEW.is_normal[test]).sum() == 4
    assert not set(train) & set(test)


NOTHING_TO_TRAIN_ON = world([(30, 10), (0, 10)], normal=[1])


@pytest.mark.parametrize("name", ["standard", "balanced", "proportion", "in_sample", "no_split"])
@pytest.mark.parametrize("data", [FEW, NOTHING_TO_TRAIN_ON, world([(30, 0)], normal=[0])], ids=["few", "in test", "alone"])
def test_a_refusal_names_a_protocol_that_works(name, data):
    options = {"contamination": 0} if name == "in_sample" else {}
    try:
        data.split(name, **options)
    except InputError as error:
        named = re.search(r"the protocol '(\w+)'(?! needs)", str(error))[1]
        assert named != name
        assert len(data.split(named).test) > 0


@pytest.mark.parametrize(("name", "option"), [("standard", "contamination"), ("proportion", "share"), ("no_split", "share")])
def test_a_refusal_names_a_value_that_works(name, option):
    data = world([(41, 13), (7, 5)], normal=[0])
    with pytest.raises(InputError, match=r": give at most ([\d.]+)") as error:
        data.split(name, **{option: 0.9})
    highest = re.search(r"give at most ([\d.]+)", str(error.value))[1]
    assert len(data.split(name, **{option: float(highest)}).test) > 0


def test_a_share_of_zero_is_given_and_not_left_out():
    assert parse_protocol("standard", {"val_fraction": 0.0, "contamination": None}) == {
        "protocol": "standard",
        "val_fraction": 0.0,
    }


def test_training_may_repeat_a_sample_but_no_test_does(function):
    """A function of a user's own may oversample; twice in a test a sample would count twice."""
    splits = split(function(lambda targets, official_test, normal, seed: ([5, 3, 5], [9, 9, 7], [2, 1, 2])), *BIG)
    assert [part.tolist() for part in splits] == [[3, 5, 5], [7, 9], [1, 2]]


def test_the_longest_name_of_a_class_wins():
    assert class_numbers("a+b+c+a", ["a", "a+b", "a+b+c", "b", "c"], "mine") == [2, 0]


def test_a_share_that_is_a_hair_below_a_whole_number_of_samples_is_that_number():
    """0.29 * 100 is 28.999999999999996 in floating point."""
    targets = np.repeat([0, 1], 100)
    for share, wanted in ((0.29, 29), (0.57, 57), (0.295, 29)):
        train = split("no_split", targets, np.zeros(200, bool), [0], options={"contamination": share}).train
        assert (targets[train] == 1).sum() == wanted

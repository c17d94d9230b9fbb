"""Records as finished cells leave them, with numbers of nobody's."""


def record(normal, seed, auroc, name="autoencoder-small", *, dataset="mnist", protocol="standard", **more):
    """A record; ``metrics`` are added to the AUROC, all else stands beside it."""
    metrics = {"auroc": auroc, **more.pop("metrics", {})}
    score = more.pop("score", "reconstruction")
    preset, comma, _ = name.partition(",")
    cell = {"preset": name, "dataset": dataset, "protocol": protocol, "normal": normal, "seed": seed}
    return {
        "name": name, "cell": cell, "base": preset if comma else None, "classes": normal.split("+"),
        "command": "", "rule": "last", "score": score, "metrics": {score: metrics}, "rules": {}, "selected_epoch": 1,
        "identity": {"source": "34efdfc16dd2"}, "git": "", "n_classes": 10, "stale": "", **more,
    }  # fmt: skip


def of_classes(classes, seeds, name="autoencoder-small", value=0.9, **more):
    """Records of several classes and seeds, each with a number of its own."""
    return [
        record(str(k), seed, value + int(k) % 10 / 100 + seed / 1000, name, **more) for k in classes for seed in range(seeds)
    ]

"""What the papers share: data sets and protocols, the base module, evaluation, records and reports."""

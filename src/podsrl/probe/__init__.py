"""A linear head on a model's hidden states that predicts success, before or after sampling."""

# Where states are taken; see `podsrl.probe.head.About.at`.
PLACES = ("prompt", "last", "prefix")

# How a head is fitted; the keys of `podsrl.probe.measure.KINDS`, which need scikit-learn.
HEADS = ("logistic", "bradley_terry", "gated")

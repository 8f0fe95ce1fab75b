"""A linear head on a model's hidden states that predicts success, before or after sampling."""

# Where states are taken; see `podsrl.probe.head.About.at`.
PLACES = ("prompt", "last", "prefix")

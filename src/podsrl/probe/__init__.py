"""A linear head on a model's hidden states that predicts success, before or after sampling."""

"""SPATL: federated learning in which salient channels of an encoder travel and predictors stay private."""

__version__ = "0.1.0"

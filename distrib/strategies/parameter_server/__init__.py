"""The parameter server: servers hold weights and optimizer state, workers send gradients to them."""

from distrib.strategies.parameter_server.strategy import ParameterServer

__all__ = ["ParameterServer"]

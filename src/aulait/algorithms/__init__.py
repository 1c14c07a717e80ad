"""The methods, one file each; importing this package files them in the registry."""

from aulait.algorithms import fedit, ffa
from aulait.registry import register

for _method in (fedit, ffa):
    register("algorithm", _method.__name__.rpartition(".")[2])(_method)

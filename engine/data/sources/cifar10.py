"""CIFAR-10: engine/data/sources/cifar.py reads it."""

from engine.data.sources.cifar import load as load
from engine.data.sources.cifar_layouts import VARIANTS

MEAN, STD, SIZE = VARIANTS['cifar10'].mean, VARIANTS['cifar10'].std, 32

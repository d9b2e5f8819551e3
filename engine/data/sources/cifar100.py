"""CIFAR-100: engine/data/sources/cifar.py reads it."""

from engine.data.sources.cifar import load as load
from engine.data.sources.cifar_layouts import VARIANTS

MEAN, STD, SIZE = VARIANTS['cifar100'].mean, VARIANTS['cifar100'].std, 32

"""Networks by name: build('wide_resnet28_10', num_classes=10, dropout=0.3).

python3 -m engine.models [NAME ...]    prints their sizes and costs
"""

from engine.models.building import build
from engine.models.counts import multiply_adds, parameter_count
from engine.models.names import MODELS, Spec, parse

__all__ = ['MODELS', 'Spec', 'build', 'multiply_adds', 'parameter_count', 'parse']

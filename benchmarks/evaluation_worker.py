"""Worker: one network measured as eval.py does, by Paddle Inference alone, and by dygraph."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable

import numpy as np

from benchmarks.evaluation import OURS, OWN, RIVAL
from benchmarks.processes import Answer, seconds, serve
from engine.config import load_config
from engine.machine import cpu
from engine.machine.start import start_paddle


def main() -> None:
    settings = json.loads(sys.argv[1])
    cpu.prepare_cpu()
    start_paddle('cpu')
    serve({'measure': measuring(**settings)})


def measuring(
    *, model: str, side: int, batch: int, images: int, threads: int
) -> Callable[[], Answer]:
    """images/s of each, one after the other; each has had its first batch."""
    from benchmarks import serving_worker
    from engine import data, evaluation, models
    from engine.export import cpu_inference, exported_folder, static_model

    chosen = [f'model.name={model}', f'eval.batch_size={batch}', f'data.num_images={images}']
    chosen += ['data.name=synthetic', f'data.image_size={side}']
    config = load_config('configs/resnext29_8x64d_cifar10.yaml', chosen)
    batches = data.test_batches(data.load_data(config, train=False), config)
    network = models.build(model, num_classes=10)
    image = exported_folder.graph_input(data.preparation(config))
    compiled, computed_by = cpu_inference.compiled(network, image)
    if compiled is network:
        raise RuntimeError(f'nothing to measure: {computed_by}')
    with tempfile.TemporaryDirectory() as folder:
        static_model.save(network, Path(folder), image)
        pixels = np.random.default_rng(0).normal(size=(batch, 3, side, side)).astype(np.float32)
        rival = serving_worker.paddle(Path(folder), threads, pixels)

    def by_evaluation(layer: Any) -> float:
        result = evaluation.evaluate(layer, batches)
        return len(result.labels) / result.seconds

    def measure() -> Answer:
        return {
            OURS: by_evaluation(compiled),
            RIVAL: images / seconds(rival, times=images // batch),
            OWN: by_evaluation(network),
        }

    measure()
    return measure


if __name__ == '__main__':
    main()

"""Worker: an exported network on one batch, again and again, by our Predictor or by another engine.

The others are set up as their own documentation shows; each gets the number of threads, no more.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, Callable

import numpy as np

from benchmarks.processes import REPOSITORY, Answer, serve

Run = Callable[[], Any]


def main() -> None:
    sys.path.insert(0, str(REPOSITORY / 'deploy'))
    settings = json.loads(sys.argv[1])
    folder, threads = Path(settings['folder']), settings['threads']
    rng = np.random.default_rng(0)
    images = rng.normal(size=(settings['batch'], 3, settings['side'], settings['side']))
    images = images.astype(np.float32)
    about: dict[str, str] = {}
    if settings['variant'] == 'ours':
        run, about = ours(folder, threads, images)
    elif settings['variant'].startswith('torch'):
        run = torch(settings['model'], threads, images, last='last' in settings['variant'])
    else:
        others = {'onnxruntime': onnxruntime, 'openvino': openvino, 'paddle': paddle}
        run = others[settings['variant']](folder, threads, images)

    def calls(seconds: float) -> Answer:
        """How long the median call takes, of at least one."""
        taken: list[float] = []
        end = time.perf_counter() + seconds
        while not taken or time.perf_counter() < end:
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
        return {'seconds': median(taken), 'calls': len(taken)}

    serve({'calls': calls, 'about': lambda: about})


def ours(folder: Path, threads: int, images: np.ndarray) -> tuple[Run, dict[str, str]]:
    """As `Predictor` chooses by itself."""
    from predictor import Predictor

    predictor = Predictor(
        folder, device='cpu', threads=threads, batch=len(images), report=lambda text: None
    )
    about = {'engine': predictor.engine, 'reason': predictor.reason}
    return lambda: predictor.logits(images), about


def onnxruntime(folder: Path, threads: int, images: np.ndarray) -> Run:
    from predictor.onnx_engines import import_onnxruntime  # without telemetry

    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    file = str(folder / 'model.onnx')
    session = ort.InferenceSession(file, options, providers=['CPUExecutionProvider'])
    return lambda: session.run(None, {'image': images})


def openvino(folder: Path, threads: int, images: np.ndarray) -> Run:
    from predictor.onnx_engines import import_openvino

    options = {
        'PERFORMANCE_HINT': 'LATENCY',
        'INFERENCE_PRECISION_HINT': 'f32',
        'INFERENCE_NUM_THREADS': threads,
    }
    compiled = import_openvino().Core().compile_model(str(folder / 'model.onnx'), 'CPU', options)
    return lambda: compiled([images])


def paddle(folder: Path, threads: int, images: np.ndarray) -> Run:
    from paddle import inference

    graph, parameters = folder / 'inference.json', folder / 'inference.pdiparams'
    config = inference.Config(str(graph), str(parameters))
    config.disable_gpu()
    config.enable_mkldnn()
    config.set_cpu_math_library_num_threads(threads)
    config.disable_glog_info()
    predictor = inference.create_predictor(config)
    given = predictor.get_input_handle(predictor.get_input_names()[0])
    answer = predictor.get_output_handle(predictor.get_output_names()[0])

    def run() -> Any:
        given.copy_from_cpu(images)
        predictor.run()
        return answer.copy_to_cpu()

    return run


def torch(name: str, threads: int, images: np.ndarray, *, last: bool) -> Run:
    """last: channels last"""
    import torch

    from benchmarks.torch_resnext import ResNeXt
    from benchmarks.torch_wide_resnet import WideResNet

    torch.set_num_threads(threads)
    networks: dict[str, Callable[[], Any]] = {
        'wide_resnet16_2': lambda: WideResNet(depth=16, widen_factor=2),
        'wide_resnet28_10': lambda: WideResNet(depth=28, widen_factor=10),
        'resnext50_32x4d': lambda: ResNeXt(
            blocks=(3, 4, 6, 3), cardinality=32, width=4, num_classes=1000
        ),
        'wide_resnet50_2': lambda: ResNeXt(
            blocks=(3, 4, 6, 3), cardinality=1, width=128, num_classes=1000
        ),
    }
    form = torch.channels_last if last else torch.contiguous_format
    network = networks[name]().eval().to(memory_format=form)
    tensor = torch.from_numpy(images).to(memory_format=form)

    def run() -> Any:
        with torch.inference_mode():
            return network(tensor).numpy()

    return run


if __name__ == '__main__':
    main()

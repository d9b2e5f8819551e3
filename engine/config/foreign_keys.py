"""Config keys and options of other suites -> what is meant here.

PaddleClas's, timm's, Ultralytics', torchvision's and MindSpore's. A value is a key of ours, or a
sentence where there is none. Names are compared in lower case, with _ for - and without leading --.
"""

from __future__ import annotations

from typing import Optional

_SGD = 'there is only SGD with momentum (optimizer.momentum, optimizer.nesterov)'
_RESUME = 'start train.py with --resume PATH'
_ALWAYS = 'there is no such key: this is always on'
_COSINE = 'write schedule.name=cosine'

# Whole sections, whose keys have other names here.
SECTIONS = ('arch', 'global', 'dataloader', 'infer', 'loss', 'metric', 'optimizer', 'amp', 'ema')

WHOLE = {
    'arch.name': 'model.name',
    'arch.pretrained': 'model.pretrained',
    'optimizer.name': _SGD,
    'optimizer.type': _SGD,
    'optimizer.lr.name': 'schedule.name',
    'optimizer.lr.learning_rate': 'optimizer.lr',
    'optimizer.lr.warmup_epoch': 'schedule.warmup_epochs',
    'optimizer.regularizer.name': 'weight decay is always L2: optimizer.weight_decay',
    'optimizer.regularizer.coeff': 'optimizer.weight_decay',
    'dataloader.eval.sampler.batch_size': 'eval.batch_size',
    'dataloader.train.sampler.batch_size': 'data.batch_size',
    'dataloader.eval.dataset.image_root': 'data.test_folder',
    'dataloader.train.dataset.name': 'data.name',
    'amp.level': 'train.amp',
    'amp.use_amp': 'train.amp',
    'ema.decay': 'train.ema',
    'name': 'model.name',
    'dir': 'output.dir',
    'start': 'eval.start',
    'every': 'eval.every',
    'batch_size': 'data.batch_size',
    'optimizer': _SGD,
    'schedule': 'schedule.name',
    'data': 'data.root',
    'model': 'model.name',
    'output': 'output.dir',
}

LAST = {
    **dict.fromkeys(('arch', 'network', 'net', 'backbone'), 'model.name'),
    **dict.fromkeys(
        ('class_num', 'num_class', 'nc', 'classes_num', 'n_classes'), 'model.num_classes'
    ),
    **dict.fromkeys(
        (
            'pretrained_model',
            'pre_trained',
            'pretrained_ckpt_path',
            'initial_checkpoint',
            'weights',
        ),
        'model.pretrained',
    ),
    **dict.fromkeys(('drop', 'drop_rate', 'dropout_rate'), 'model.dropout'),
    **dict.fromkeys(('channels_last', 'layout'), 'model.data_format'),
    **dict.fromkeys(
        ('use_gpu', 'use_npu', 'use_cuda', 'no_cuda', 'device_target', 'place'), 'device'
    ),
    **dict.fromkeys(('b', 'batch', 'batchsize', 'train_batch_size', 'bs'), 'data.batch_size'),
    **dict.fromkeys(
        ('validation_batch_size', 'val_batch_size', 'test_batch_size'), 'eval.batch_size'
    ),
    **dict.fromkeys(
        ('data_dir', 'data_path', 'dataset_path', 'image_root', 'data_url', 'dataroot'), 'data.root'
    ),
    **dict.fromkeys(('dataset', 'dataset_name'), 'data.name'),
    **dict.fromkeys(
        ('imgsz', 'img_size', 'image_shape', 'input_size', 'crop_size'), 'data.image_size'
    ),
    **dict.fromkeys(('num_workers', 'j', 'num_parallel_workers'), 'data.workers'),
    **dict.fromkeys(('hflip', 'fliplr'), 'data.flip'),
    **dict.fromkeys(('reprob', 'erasing', 'random_erase'), 'data.random_erasing'),
    **dict.fromkeys(('aa', 'autoaugment'), 'data.auto_augment'),
    'colorjitter': 'data.color_jitter',
    **dict.fromkeys(
        ('lr0', 'learning_rate', 'lr_init', 'lr_max', 'base_lr', 'lr_base'), 'optimizer.lr'
    ),
    **dict.fromkeys(('wd', 'coeff', 'l2_decay'), 'optimizer.weight_decay'),
    **dict.fromkeys(('clip_grad', 'max_norm', 'clip_grad_norm'), 'optimizer.clip_norm'),
    **dict.fromkeys(('lr_base_size', 'nbs'), 'optimizer.reference_batch'),
    **dict.fromkeys(('opt', 'optim', 'use_adam'), _SGD),
    **dict.fromkeys(('sched', 'scheduler', 'lr_scheduler', 'lr_decay_mode'), 'schedule.name'),
    **dict.fromkeys(('decay_milestones', 'milestones'), 'schedule.boundaries'),
    **dict.fromkeys(('decay_epochs', 'lr_step_size'), 'schedule.step_size'),
    **dict.fromkeys(('decay_rate', 'lr_gamma'), 'schedule.gamma'),
    **dict.fromkeys(('min_lr', 'eta_min', 'lr_end'), 'schedule.end_lr'),
    'lrf': 'schedule.end_lr (a rate here, not a share of the first)',
    'cos_lr': _COSINE,
    **dict.fromkeys(('warmup_epoch', 'lr_warmup_epochs'), 'schedule.warmup_epochs'),
    'warmup_lr': 'schedule.warmup_start_lr',
    **dict.fromkeys(
        ('epoch', 'epoch_num', 'epoch_size', 'num_epochs', 'max_epoch'), 'train.epochs'
    ),
    **dict.fromkeys(('max_iter', 'iters'), 'train.max_steps'),
    **dict.fromkeys(
        ('accumulation_steps', 'grad_accum_steps', 'update_freq', 'accum_iter'), 'train.accumulate'
    ),
    **dict.fromkeys(('use_amp', 'fp16', 'half', 'mixed_precision', 'amp_level'), 'train.amp'),
    **dict.fromkeys(('scale_loss', 'init_loss_scaling'), 'train.loss_scale'),
    **dict.fromkeys(('use_sync_bn', 'syncbn', 'sync_batchnorm'), 'train.sync_bn'),
    **dict.fromkeys(
        ('smoothing', 'label_smooth_factor', 'ls_epsilon', 'epsilon'), 'train.label_smoothing'
    ),
    **dict.fromkeys(('model_ema_decay', 'ema_decay', 'use_ema', 'model_ema'), 'train.ema'),
    **dict.fromkeys(('print_batch_step', 'log_interval', 'print_freq'), 'train.log_every'),
    **dict.fromkeys(
        ('save_interval', 'save_period', 'save_checkpoint_epochs', 'save_freq'), 'train.save_every'
    ),
    **dict.fromkeys(
        ('keep_checkpoint_max', 'checkpoint_hist', 'max_num_latest_checkpoint'), 'train.keep'
    ),
    **dict.fromkeys(
        ('eval_interval', 'eval_during_train', 'run_eval', 'val_interval'), 'eval.every'
    ),
    **dict.fromkeys(('eval_start_epoch', 'start_eval_epoch'), 'eval.start'),
    **dict.fromkeys(('tta', 'augment'), 'eval.views'),
    'crop_pct': 'eval.resize (pixels here, not a share)',
    **dict.fromkeys(
        ('output_dir', 'save_dir', 'project', 'output_path', 'train_url'), 'output.dir'
    ),
    **dict.fromkeys(('checkpoints', 'checkpoint', 'resume_from', 'ckpt_path'), _RESUME),
    'use_dali': 'there is no DALI here; data.workers are threads that read pictures',
    **dict.fromkeys(('save_inference_dir', 'export_dir'), 'start export.py with --output DIR'),
    **dict.fromkeys(('use_visualdl', 'visualdl'), _ALWAYS),
}


def meaning(name: str) -> Optional[str]:
    """A key of ours, or a sentence, for a name of another suite's; None where none is known."""
    name = name.lstrip('-').replace('-', '_').lower()
    last = name.rpartition('.')[2]
    return WHOLE.get(name) or LAST.get(last)

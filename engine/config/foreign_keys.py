"""Config keys and options of other suites -> the answer to them.

Of PaddleClas, timm, Ultralytics, torchvision and MindSpore. An answer is a key of ours, or a
sentence where there is none. Names are compared in lower case, with _ for - and without leading --.
"""

from __future__ import annotations

from typing import Optional

_SGD = 'there is only SGD with momentum (optimizer.momentum, optimizer.nesterov)'

# Whole sections, whose keys have other names here.
SECTIONS = ('arch', 'global', 'dataloader', 'infer', 'loss', 'metric', 'optimizer', 'amp', 'ema')


def _table(text: str) -> dict[str, str]:
    """{'net': 'model.name', ...} of lines like `model.name: arch net`."""
    rows = [line.split(': ') for line in text.strip().splitlines()]
    return {name: ours.strip() for ours, names in rows for name in names.split()}


# Names with their sections, and short ones that mean something else inside a section.
WHOLE = {
    **_table("""
        model.name: arch.name name model
        model.pretrained: arch.pretrained
        schedule.name: optimizer.lr.name schedule
        optimizer.lr: optimizer.lr.learning_rate
        schedule.warmup_epochs: optimizer.lr.warmup_epoch
        optimizer.weight_decay: optimizer.regularizer.coeff
        eval.batch_size: dataloader.eval.sampler.batch_size
        data.batch_size: dataloader.train.sampler.batch_size batch_size
        data.test_folder: dataloader.eval.dataset.image_root
        data.name: dataloader.train.dataset.name
        data.root: data
        train.amp: amp.level amp.use_amp
        train.ema: ema.decay
        output.dir: dir output
        eval.start: start
        eval.every: every
    """),
    **dict.fromkeys(('optimizer.name', 'optimizer.type', 'optimizer'), _SGD),
    'optimizer.regularizer.name': 'weight decay is always L2: optimizer.weight_decay',
}

# Names in any section.
LAST = {
    **_table("""
        model.name: arch network net backbone
        model.num_classes: class_num num_class nc classes_num n_classes
        model.pretrained: pretrained_model pre_trained pretrained_ckpt_path weights
        model.pretrained: initial_checkpoint
        model.dropout: drop drop_rate dropout_rate
        model.data_format: channels_last layout
        device: use_gpu use_npu use_cuda no_cuda device_target place
        data.batch_size: b batch batchsize train_batch_size bs
        eval.batch_size: validation_batch_size val_batch_size test_batch_size
        data.root: data_dir data_path dataset_path image_root data_url dataroot
        data.name: dataset dataset_name
        data.image_size: imgsz img_size image_shape input_size crop_size
        data.workers: num_workers j num_parallel_workers
        data.flip: hflip fliplr
        data.random_erasing: reprob erasing random_erase
        data.auto_augment: aa autoaugment
        data.color_jitter: colorjitter
        optimizer.lr: lr0 learning_rate lr_init lr_max base_lr lr_base
        optimizer.weight_decay: wd coeff l2_decay
        optimizer.clip_norm: clip_grad max_norm clip_grad_norm
        optimizer.reference_batch: lr_base_size nbs
        schedule.name: sched scheduler lr_scheduler lr_decay_mode
        schedule.boundaries: decay_milestones milestones
        schedule.step_size: decay_epochs lr_step_size
        schedule.gamma: decay_rate lr_gamma
        schedule.end_lr: min_lr eta_min lr_end
        schedule.warmup_epochs: warmup_epoch lr_warmup_epochs
        schedule.warmup_start_lr: warmup_lr
        train.epochs: epoch epoch_num epoch_size num_epochs max_epoch
        train.max_steps: max_iter iters
        train.accumulate: accumulation_steps grad_accum_steps update_freq accum_iter
        train.amp: use_amp fp16 half mixed_precision amp_level
        train.loss_scale: scale_loss init_loss_scaling
        train.sync_bn: use_sync_bn syncbn sync_batchnorm
        train.label_smoothing: smoothing label_smooth_factor ls_epsilon epsilon
        train.ema: model_ema_decay ema_decay use_ema model_ema
        train.log_every: print_batch_step log_interval print_freq
        train.save_every: save_interval save_period save_checkpoint_epochs save_freq
        train.keep: keep_checkpoint_max checkpoint_hist max_num_latest_checkpoint
        eval.every: eval_interval eval_during_train run_eval val_interval
        eval.start: eval_start_epoch start_eval_epoch
        eval.views: tta augment
        output.dir: output_dir save_dir project output_path train_url
        start export.py with --output DIR: save_inference_dir export_dir
        start train.py with --resume PATH: checkpoints checkpoint resume_from ckpt_path
        write schedule.name=cosine: cos_lr
        eval.resize (pixels here, not a fraction): crop_pct
        schedule.end_lr (a rate here, not a fraction of the first): lrf
        there is no DALI here; data.workers are threads that read pictures: use_dali
        there is no such key, this is always on: use_visualdl visualdl
    """),
    **dict.fromkeys(('opt', 'optim', 'use_adam'), _SGD),
}


def meaning(name: str) -> Optional[str]:
    """The answer to a name of another suite; None for an unknown name."""
    name = name.lstrip('-').replace('-', '_').lower()
    return WHOLE.get(name) or LAST.get(name.rpartition('.')[2])

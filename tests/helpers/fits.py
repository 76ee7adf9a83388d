"""A fit by the trainer, small, and its data."""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from helpers.small import model_of
from vrnn_lab.data.datasets.spirals import Spirals1D
from vrnn_lab.training.callbacks import Progress


def data_of(train: int = 12, batch_size: int = 4):
    return Spirals1D(train=train, val=3, test=3, points=6, batch_size=batch_size)


def fit(data, *parts, epochs: int = 2, model=None, logger=False, resume=None, **keys):
    model = model or model_of("rnn", scale=data.scale)
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=list(parts),
        logger=logger,
        accelerator="cpu",
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(p, Progress) for p in parts),
        enable_checkpointing=any(isinstance(p, ModelCheckpoint) for p in parts),
        num_sanity_val_steps=keys.pop("num_sanity_val_steps", 0),
        log_every_n_steps=1,
        **keys,
    )
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
    return trainer, model

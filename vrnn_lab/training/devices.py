"""Choose what a run is fitted on: the devices of this machine, and the processes on them."""

import ctypes
import os

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.training.ddp import launched


def check_accelerator(config: DictConfig) -> None:
    """Raise ConfigError unless this machine has the requested devices, and a launcher for every process on them."""
    trainer, known = config.trainer, launched()[1]
    if trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"trainer.accelerator={trainer.accelerator}, but this machine has no GPU that torch "
            f"{torch.__version__} can use; choose trainer=auto or trainer=cpu, or install a GPU build of torch."
        )
    if trainer.get("compile") == "reduce-overhead" and accelerator_of(config) == "cpu":
        raise ConfigError(
            "trainer.compile=reduce-overhead makes CUDA graphs, but this run is on the CPU; set trainer.compile=on."
        )
    number, machines, there = processes_of(config), trainer.get("num_nodes", 1), torch.cuda.device_count()
    named = OmegaConf.is_list(trainer.devices)
    last = max(trainer.devices) if named else number - 1
    if last >= there and (named or accelerator_of(config) != "cpu"):
        raise ConfigError(f"trainer.devices={trainer.devices}, but this machine has {there} GPUs, numbered from 0.")
    if machines > 1 == known:
        raise ConfigError(
            f"trainer.num_nodes={machines}: by itself a run starts processes on one machine; start this command on "
            "every machine by srun or torchrun."
        )
    if known > 1 and number * machines != known:
        raise ConfigError(
            f"this command was started as {known} processes, but trainer.devices={trainer.devices} on {machines} "
            f"machines make {number * machines}; choose trainer=ddp with trainer.devices and trainer.num_nodes that "
            f"make {known}."
        )


def accelerator_of(config: DictConfig) -> str:
    """Return the accelerator of a run: for auto gpu or cpu.

    Lightning's own auto may choose Apple's GPU, which lacks the float64 that times need.
    """
    chosen = config.trainer.accelerator
    return ("gpu" if torch.cuda.is_available() else "cpu") if chosen == "auto" else chosen


def processes_of(config: DictConfig) -> int:
    """Return how many processes, each with a device of this machine, fit the model."""
    devices = config.trainer.devices
    if devices != "auto":
        return len(devices) if OmegaConf.is_list(devices) else devices
    if (known := launched()[1]) > 1:
        return known // config.trainer.num_nodes
    return 1 if accelerator_of(config) == "cpu" else torch.cuda.device_count()


def strategy_of(config: DictConfig) -> DDPStrategy:
    """Return the DDP strategy of a run whose processes srun, torchrun or `ddp.run` has started."""
    unused = config.trainer.strategy.endswith("find_unused_parameters_true")
    srun = "RANK" not in os.environ
    starter = SLURMEnvironment(auto_requeue=False) if srun else TorchElasticEnvironment()
    return DDPStrategy(cluster_environment=starter, find_unused_parameters=unused)


LARGEST, KEPT = 2**25, 2**29  # bytes of the largest block that the C library keeps (its maximum), and of all of them


def keep_memory() -> None:
    """Have the C library (glibc) keep freed memory, since large tensors of each step else cause new page faults."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        mallopt(-3, LARGEST)  # M_MMAP_THRESHOLD
        mallopt(-1, KEPT)  # M_TRIM_THRESHOLD

"""Runs every test on 8 fake CPU devices and gives it clean SeqIO registries."""

import os

# Before anything imports jax: the flags are read once, at its start.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

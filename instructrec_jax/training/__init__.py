"""Optimizers, schedules, the jitted step and the loop around it."""

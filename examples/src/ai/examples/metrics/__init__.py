"""Measurements that a trial can take: accuracy, FID, KID, and a Fréchet distance in any network's features."""

from ai.examples.metrics.accuracy import accuracy_task
from ai.examples.metrics.frechet import Statistics, frechet_distance, split_distance
from ai.examples.metrics.images import Features, frechet_task
from ai.examples.metrics.inception import fid_task, inception_features
from ai.examples.metrics.kernel import kernel_distance
from ai.examples.metrics.task import Task, yardstick

__all__ = [
    "Features",
    "Statistics",
    "Task",
    "accuracy_task",
    "fid_task",
    "frechet_distance",
    "frechet_task",
    "inception_features",
    "kernel_distance",
    "split_distance",
    "yardstick",
]

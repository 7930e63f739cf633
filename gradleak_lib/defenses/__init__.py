"""What a client does to its update before it is sent: functions ``Update -> Update``."""

from gradleak_lib.defenses.noise import laplacian_noise

__all__ = ["laplacian_noise"]

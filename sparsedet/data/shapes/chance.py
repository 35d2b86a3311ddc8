"""Random numbers that are the same on every machine and in every numpy."""

import math

import numpy as np

_TWO_TO_MINUS_53 = 1.0 / 2**53


class Chance:
    """Random numbers made from raw PCG64 output, which is the same in every numpy."""

    def __init__(self, seed: list[int]) -> None:
        self._bits = np.random.PCG64(seed)

    def _unit(self) -> float:
        return (self._bits.random_raw() >> 11) * _TWO_TO_MINUS_53

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A float from low (included) to high (excluded)."""
        return low + (high - low) * self._unit()

    def color(self) -> list[float]:
        """A color: three channels in [0, 255)."""
        return [self.uniform(0, 255) for _ in range(3)]

    def integer(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + int(self._unit() * (high - low + 1))

    def grid(self, *shape: int) -> np.ndarray:
        """Uniform in [-1, 1), float32."""
        raw = np.asarray(self._bits.random_raw(math.prod(shape))) >> np.uint64(11)
        return (raw * (2 * _TWO_TO_MINUS_53) - 1).astype(np.float32).reshape(shape)

    def bells(self, *shape: int) -> np.ndarray:
        """Nearly normal numbers with standard deviation 1: sums of four random bytes."""
        count = math.prod(shape)
        raw = np.asarray(self._bits.random_raw(-(-count // 2))).astype("<u8").view(np.uint8)
        total = raw[: 4 * count].reshape(4, count).sum(axis=0, dtype=np.int16)
        return ((total - 510) * np.float32(1 / 147.8)).reshape(shape)

    def poisson(self, mean: float) -> int:
        """A Poisson number, by inversion."""
        probability = math.exp(-mean)
        left, count = self.uniform() - probability, 0
        while left > 0 and count < 1000:
            count += 1
            probability *= mean / count
            left -= probability
        return count

    def direction(self) -> tuple[float, float]:
        """Cosine and sine of a uniform angle, without calling either."""
        while True:
            x, y = self.uniform(-1, 1), self.uniform(-1, 1)
            square = x * x + y * y
            if 0.01 < square <= 1:
                norm = math.sqrt(square)
                return x / norm, y / norm

    def log_uniform(self, low: float, high: float) -> float:
        """A log-uniform number out of 65 steps, computed from square roots only."""
        step = high / low
        value = low
        place = self.integer(0, 64)
        for bit in (64, 32, 16, 8, 4, 2, 1):
            if place & bit:
                value *= step
            step = math.sqrt(step)
        return value

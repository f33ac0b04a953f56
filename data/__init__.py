"""Daily closing prices, and the segments of them that a forecaster learns from."""

from .prices import adjust_for_splits as adjust_for_splits
from .prices import load_prices as load_prices
from .segments import Segments as Segments
from .segments import make_segments as make_segments

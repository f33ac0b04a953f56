"""A forecaster of stock prices with an optimisation problem inside, and its training."""

from .forecaster import ArgminPredictor as ArgminPredictor
from .forecaster import Decoder as Decoder
from .forecaster import Encoder as Encoder
from .forecaster import EncoderPredictorDecoder as EncoderPredictorDecoder
from .forecaster import RidgePredictor as RidgePredictor
from .forecaster import postdiction_loss as postdiction_loss
from .forecaster import ridge_weights as ridge_weights

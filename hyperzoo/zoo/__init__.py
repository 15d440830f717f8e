"""From a published name to a verified file and to a network; no training, no data."""

from hyperzoo.zoo.load import Loaded as Loaded
from hyperzoo.zoo.load import any_network as any_network
from hyperzoo.zoo.load import class_names as class_names
from hyperzoo.zoo.load import described as described
from hyperzoo.zoo.load import list_models as list_models
from hyperzoo.zoo.load import list_weights as list_weights
from hyperzoo.zoo.load import load as load
from hyperzoo.zoo.load import local_folder as local_folder
from hyperzoo.zoo.load import weight_info as weight_info
from hyperzoo.zoo.load import weight_sha256 as weight_sha256
from hyperzoo.zoo.preprocessing import preprocess as preprocess
from hyperzoo.zoo.weight_description import WeightInfo as WeightInfo

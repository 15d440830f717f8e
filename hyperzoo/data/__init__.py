"""Data sets: from the Hub or a mirror to batches on the training device."""

from hyperzoo.data.augment import augment as augment
from hyperzoo.data.augment import plan_epoch as plan_epoch
from hyperzoo.data.batches import Batch as Batch
from hyperzoo.data.batches import ImageBatches as ImageBatches
from hyperzoo.data.batches import Normalize as Normalize
from hyperzoo.data.batches import eval_batches as eval_batches
from hyperzoo.data.fit import Fit as Fit
from hyperzoo.data.images import ImageSet as ImageSet
from hyperzoo.data.load import load_images as load_images
from hyperzoo.data.load import load_split as load_split
from hyperzoo.data.own import OwnImages as OwnImages
from hyperzoo.data.own import find_labeled as find_labeled
from hyperzoo.data.own import find_own as find_own
from hyperzoo.data.streamed import StreamedBatches as StreamedBatches
from hyperzoo.data.streamed import StreamedSet as StreamedSet
from hyperzoo.data.streamed import streamed_eval_batches as streamed_eval_batches
from hyperzoo.data.text import TextBatches as TextBatches
from hyperzoo.data.text import TextSet as TextSet
from hyperzoo.data.text import load_text as load_text

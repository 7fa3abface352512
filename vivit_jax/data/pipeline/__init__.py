"""The tf.data input pipeline: batches of training clips and of evaluation views."""

from vivit_jax.data.config import PipelineOptions
from vivit_jax.data.pipeline.batches import eval_batches, train_batches
from vivit_jax.data.pipeline.clips import cutter, views_from_file
from vivit_jax.data.selection.sampling import ClipSpec

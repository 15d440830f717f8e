"""Loss terms: MHE, orthogonality, minimum angle, PER, VCL and activation norms."""

from hyperzoo.regularizers.activation_norm import ActivationNorm as ActivationNorm
from hyperzoo.regularizers.activation_norm import lp_penalty as lp_penalty
from hyperzoo.regularizers.mhe import MHE as MHE
from hyperzoo.regularizers.mhe import hyperspherical_energy as hyperspherical_energy
from hyperzoo.regularizers.mhe import label_energy as label_energy
from hyperzoo.regularizers.minimum_angle import MinimumAngle as MinimumAngle
from hyperzoo.regularizers.minimum_angle import nearest_angle as nearest_angle
from hyperzoo.regularizers.orthogonality import Orthogonality as Orthogonality
from hyperzoo.regularizers.orthogonality import orthogonality_penalty as orthogonality_penalty
from hyperzoo.regularizers.per import PER as PER
from hyperzoo.regularizers.projections import projected_error as projected_error
from hyperzoo.regularizers.projections import sliced_wasserstein as sliced_wasserstein
from hyperzoo.regularizers.vcl import VCL as VCL
from hyperzoo.regularizers.vcl import variance_constancy as variance_constancy

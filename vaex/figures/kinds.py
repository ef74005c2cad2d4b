"""All kinds of figures, in the order in which they are drawn."""

from vaex.figures.curves import CURVES
from vaex.figures.grids import DENOISING, PSEUDO_INPUTS, RECONSTRUCTIONS, SAMPLES
from vaex.figures.interpolation import INTERPOLATION
from vaex.figures.latents import LATENTS
from vaex.figures.levels import GROUP_RATES, LEVELS, TEMPERATURE_SAMPLES
from vaex.figures.manifold import MANIFOLD
from vaex.figures.projector import PROJECTOR
from vaex.figures.scale import SCALE
from vaex.figures.traversal import TRAVERSALS

FIGURES = {
    kind.name: kind
    for kind in (
        *(RECONSTRUCTIONS, LEVELS, SAMPLES, TEMPERATURE_SAMPLES, DENOISING, INTERPOLATION, TRAVERSALS),
        *(MANIFOLD, LATENTS, PSEUDO_INPUTS, SCALE, CURVES, GROUP_RATES, PROJECTOR),
    )
}

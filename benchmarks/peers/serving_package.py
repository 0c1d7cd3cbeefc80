"""Parts of random weights, of 100,000 items if left, for serving benchmarks."""

from peers.workload import NUM_LEVELS, random_generator, scattered_trie

from sgrec_torchrec.config import EvidenceConfig, GeneratorConfig
from sgrec_torchrec.generator.model import Generator
from sgrec_torchrec.serving.catalogue import ServedCatalogue
from sgrec_torchrec.serving.parts import Parts, ServingSettings, empty_network

NUM_ITEMS, NUM_CODES, HISTORY, WIDTH = 100_000, 256, 150, 50
CONFIG = GeneratorConfig(
    dim=256, num_layers=4, num_heads=4, decoder_width=256, dropout=0.0
)


def made_generator(
    num_items: int = NUM_ITEMS, config: GeneratorConfig = CONFIG
) -> Generator:
    """The same weights in every process."""
    trie = scattered_trie(num_items, NUM_CODES)
    return random_generator(trie, config, seed=0).eval()


def made_parts(num_items: int = NUM_ITEMS, config: GeneratorConfig = CONFIG) -> Parts:
    """What a run with these weights would be served from."""
    settings = ServingSettings(
        generator=config,
        evidence=EvidenceConfig(max_history=HISTORY),
        num_items=num_items,
        num_levels=NUM_LEVELS,
        num_codes=NUM_CODES,
        event_types=("view", "buy"),
        has_clock=False,
        has_value=False,
        max_history=HISTORY,
        beam_width=WIDTH,
        filter_seen=False,
        prior_weight=0.0,
        made_of="random weights",
    )
    generator = made_generator(num_items, config)
    network = empty_network(settings)
    state = {name: value.detach() for name, value in generator.state_dict().items()}
    network.load_state_dict(
        {name: state[name] for name in network.state_dict()}, assign=True
    )
    names = [f"item{item}" for item in range(num_items)]
    return Parts(
        network=network,
        trie=generator.tower.trie,
        catalogue=ServedCatalogue(names, names, [""] * num_items, "made up"),
        evidence=None,
        settings=settings,
    )

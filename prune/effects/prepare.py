"""What `excise effects` refuses before weights come, without torch."""

from experts.disk.find import fetched, find_model
from experts.disk.layout import Layout, lay_out
from experts.disk.loadable import check_loadable
from prune.effects.request import Request


def prepare_effects(request: Request) -> Layout:
    """The model of a request; what cannot be measured is refused before its weights come."""
    request.check_alone()
    model = find_model(request.model)
    layout = lay_out(model.headers())
    request.check(layout.shape)
    check_loadable(layout.checkpoint.config, model.names, model.name, request.trust_remote_code)
    return fetched(model, layout)

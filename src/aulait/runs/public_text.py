"""The public or released text that a method reads before its rounds: found by the names of its
sources."""

from __future__ import annotations

from collections.abc import Sequence

from aulait.core.errors import DataError, require
from aulait.core.types import Record
from aulait.data import config as data_config
from aulait.data import public
from aulait.data.checks import public_form
from aulait.methods.contract import AUTO, PUBLIC, RELEASED, PublicTextMethod, State
from aulait.runs.prepared import PreparedRun
from aulait.synthesis.population import Text

Released = Sequence[Sequence[Text]]  # the texts of stage 1, as they are dealt to proxies


def after_public_text(run: PreparedRun, state: State, released: Released) -> State:
    """The state of the next round, after what the method reads before it.

    Args:
        run: its method, its public texts.
        state: after the last round.
        released: what stage 1 has written or chosen; none where it has not run.
    """
    method, config = run.settings.method, run.settings.method_config
    if not isinstance(method, PublicTextMethod):
        return state
    most = method.text_count(config)
    texts = [record for source in method.wants(config, run.context, state)
             for record in read_source(source, run, released)[:most]]
    return method.look(config, run.context, state, run.models.learner, texts)


def read_source(source: str, run: PreparedRun, released: Released) -> list[Record]:
    """The texts of a source, in a fixed order that favours none.

    Raises:
        DataError: it has none.
    """
    made = [text.record for shard in released for text in shard]
    if source == AUTO:
        source = RELEASED if made else PUBLIC
    if source == RELEASED:
        found = made
    elif source == PUBLIC:
        found = [_record(text) for text in run.federation.corpus.public]
    else:
        data = run.settings.data
        form = public_form(data)
        asked = data_config.public_asked(data, form)
        texts, _ = run.cache.once("public text", (source, asked, form),
                                  lambda: public.read_public(source, asked, form))
        found = [_record(text) for text in texts]
    require(bool(found), DataError,
            f"the method reads {source} text and there is none; set data.public, or name another "
            "source in the method's settings")
    return found


def _record(text: str | Record) -> Record:
    return Record(text) if isinstance(text, str) else text

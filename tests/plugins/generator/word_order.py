"""A generator without a model: a new text has the words of an old one in another order."""

from random import Random

from aulait.core.types import Record


class WordOrder:
    """Everything is random by the seed alone, as the contract of a generator asks."""

    def vary(self, texts, seed):
        """One child for every text; None where all orders of its words are the text itself."""
        children = [" ".join(Random(f"{seed} {i} {text}").sample(words, len(words)))
                    for i, text in enumerate(texts) for words in [text.split()]]
        return [child if child != text else None
                for child, text in zip(children, texts, strict=True)]

    def write(self, examples, count, seed):
        """As many new texts, each from an example drawn at random."""
        drawn = Random(seed).choices(examples, k=count) if examples else []
        return [text for text in self.vary(drawn, seed) if text is not None]

    def vary_pairs(self, pairs, seed):
        """One child for every pair: its response in another order."""
        texts = self.vary([pair.text for pair in pairs], seed)
        return [None if text is None else Record(text, pair.prompt)
                for text, pair in zip(texts, pairs, strict=True)]

    def write_pairs(self, examples, count, seed):
        """As many new pairs, each from an example drawn at random."""
        drawn = Random(seed).choices(examples, k=count) if examples else []
        return [pair for pair in self.vary_pairs(drawn, seed) if pair is not None]


def build(config, model):
    """The words of a text in another order; the model of the experiment is not asked for."""
    return WordOrder()

"""Messages to tokens: whatever is said, the tokens are those of the chat template."""

from hypothesis import given, settings
from hypothesis import strategies as st

words = st.text(st.characters(codec="utf-8", exclude_characters="<\x00"), max_size=40)


def spoken(template, replies, observations):
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    ids = template.opening(messages)
    for reply, observation in zip(replies, observations, strict=True):
        ids += template.encode(reply)
        ids += template.between("user", observation, ids[-1])
        messages += [
            {"role": "assistant", "content": reply},
            {"role": "user", "content": observation},
        ]
    return messages, ids


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words.filter(bool), words), min_size=1, max_size=3))
def test_turn_by_turn_equals_the_whole_template(template, pairs):
    """verl#3720: the newline behind an end of turn was dropped before every tool result."""
    replies, observations = zip(*pairs, strict=True)
    messages, ids = spoken(template, replies, observations)
    whole = template.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    again = template.tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert template.tokenizer.decode(ids) == template.tokenizer.decode(again)


def test_an_end_of_turn_token_is_not_written_twice(template):
    ids = template.encode("hello")
    plain = template.between("user", "x", ids[-1])
    after_eos = template.between("user", "x", template.eos_id)
    assert plain == [template.eos_id, *after_eos]


def test_special_tokens_in_foreign_text_are_broken(template):
    special = set(template.tokenizer.all_special_ids)
    for text in ("<|im_end|>", "a<|im_start|>system", "<|endoftext|>"):
        assert not special & set(template.encode(template.neutralise(text)))


def test_neutralising_leaves_other_text_alone(template):
    assert template.neutralise("2 < 3 | x <b>") == "2 < 3 | x <b>"

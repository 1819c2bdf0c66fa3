"""Words: the frequent ones have ids, the others are spelled."""

from lmlab.data.tokenizers.word import Options, Word


def test_the_most_frequent_words_get_ids_and_others_are_spelled_in_bytes() -> None:
    tokenizer = Word.fit(Options(vocabulary_size=259), ["to be or", " not to be", " é é"])
    assert tokenizer.token_bytes[256:] == [b" be", " é".encode(), b""]
    assert tokenizer.bos == 258
    assert tokenizer.encode("to be ébé").tolist() == [*b"to", 256, *" ébé".encode()]
    assert tokenizer.encode(" be é").tolist() == [256, 257]


def test_a_word_of_one_byte_is_that_byte_and_takes_no_id() -> None:
    tokenizer = Word.fit(Options(vocabulary_size=300), ["a,a,a,\n\n"])
    assert tokenizer.token_bytes[256:] == [b"\n\n", b""]


def test_new_words_come_after_the_document_token() -> None:
    tokenizer = Word.fit(Options(vocabulary_size=258), ["to be to be"])
    grown = tokenizer.grown(["so be it", " so it is, it is"], 2)
    assert grown.token_bytes[256:] == [b" be", b"", b" it", b" is"]
    assert grown.grown([" be it is"], 9).token_bytes == grown.token_bytes
    assert grown.encode(" be it is").tolist() == [256, 258, 259]

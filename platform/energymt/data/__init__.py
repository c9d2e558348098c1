"""From text to batches: corpora, vocabularies, the plan of an epoch, and a generated language pair with an exact judge.

The rooms of this floor:

    corpus      DataConfig -> Corpus: TSV, JSONL, pairs of text files, Hugging Face datasets
    lines       lines of plain and gzip files; every error names file and line
    vocabulary  text <-> ids: SentencePiece, and text that is already segmented
    hub         the same around a Hugging Face tokenizer
    batching    Corpus -> ids -> optimizer steps, cut by tokens and by length
    toy         the generated language pair
"""

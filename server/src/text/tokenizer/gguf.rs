//! A tokenizer from the metadata of a GGUF file: SentencePiece BPE (`llama`), byte-level BPE (`gpt2`, with the splits
//! that `tokenizer.ggml.pre` names), WordPiece (`bert`) and unigram (`t5`).

use std::path::Path;

use engine_core::loader::gguf::GgufFile;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer as HfTokenizer};

use super::byte_level::QWEN2_PATTERN;
use super::settings::{AddedToken, Settings};
use super::{MAX_TOKEN_ID, Tokenizer, TokenizerError, file_error};
use crate::text::sentencepiece::{Gguf as PieceModel, Piece, PieceKind, SentencePiece};

/// How GPT-2 cuts text.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3: like GPT-4, digits in threes.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's Tekken: words by case, digits one by one.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-4o: words by case with their contractions, digits in threes.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// DeepSeek V3 after its digits and CJK runs are cut out.
const DEEPSEEK3: &str =
    r"[!-/:-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How byte-level BPE cuts text before merging.
struct Pre {
    steps: Vec<Step>,
    nfc: bool,
    /// A word that is a token is that token, whatever the merges say.
    whole_words: bool,
    add_bos: bool,
}

enum Step {
    Regex(&'static str),
    Digits,
    Punctuation,
}

/// The rules of a `tokenizer.ggml.pre`.
fn pre(name: &str) -> Option<Pre> {
    use Step::{Digits, Punctuation, Regex};
    let plain = |steps| Pre { steps, nfc: false, whole_words: false, add_bos: false };
    Some(match name {
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" => {
            Pre { whole_words: true, add_bos: true, ..plain(vec![Regex(LLAMA3)]) }
        }
        "smaug-bpe" | "dbrx" | "chatglm-bpe" => plain(vec![Regex(LLAMA3)]),
        "qwen2" | "deepseek-r1-qwen" | "stablelm2" | "hunyuan" | "megrez" | "kormo" => {
            Pre { nfc: name != "stablelm2", ..plain(vec![Regex(QWEN2_PATTERN)]) }
        }
        "default" | "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "gigachat" | "jina-v2-es" | "jina-v2-de"
        | "mpt" | "olmo" | "jais" | "trillion" | "roberta-bpe" | "exaone4" => plain(vec![Regex(GPT2)]),
        "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone" | "minerva-7b" => {
            plain(vec![Digits, Regex(GPT2)])
        }
        "falcon" => plain(vec![Punctuation, Regex(GPT2), Regex("[0-9][0-9][0-9]")]),
        "deepseek-coder" => plain(vec![
            Regex(r"[\r\n]"),
            Regex(r"\s?\p{L}+"),
            Regex(r"\s?\p{P}+"),
            Regex(r"[一-龥ࠀ-一가-퟿]+"),
            Regex(r"\p{N}"),
        ]),
        "deepseek-v3" | "hunyuan-dense" => {
            plain(vec![Regex(r"\p{N}{1,3}"), Regex(r"[一-龥぀-ゟ゠-ヿ]+"), Regex(DEEPSEEK3)])
        }
        "tekken" => Pre { whole_words: true, add_bos: true, ..plain(vec![Regex(TEKKEN)]) },
        "gpt-4o" | "llama4" => plain(vec![Regex(GPT4O)]),
        _ => return None,
    })
}

/// What the metadata says of tokens, whatever their kind.
struct Tokens {
    texts: Vec<String>,
    scores: Vec<f32>,
    kinds: Vec<PieceKind>,
}

impl Tokenizer {
    /// The tokenizer in the metadata of a GGUF file.
    ///
    /// # Errors
    /// [`TokenizerError::Missing`] when it has none; [`TokenizerError::File`] naming what is wrong with it.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, TokenizerError> {
        let path = file.path();
        let failed = |e: engine_core::Error| file_error(path, e.to_string());
        let Some(model) = file.text("tokenizer.ggml.model").map_err(failed)? else {
            return Err(TokenizerError::Missing { directory: path.display().to_string() });
        };
        let tokens = Tokens::read(file)?;
        let mut settings = tokens.settings(file)?;
        match model {
            "llama" | "t5" => {
                let model = piece_model(file, tokens, &settings, model == "t5")?;
                let model = SentencePiece::from_gguf(model).map_err(|why| file_error(path, why))?;
                Self::from_sentencepiece(model, &settings, path)
            }
            "gpt2" => {
                let name = file.text("tokenizer.ggml.pre").map_err(failed)?.unwrap_or("default");
                let pre = pre(name).ok_or_else(|| {
                    file_error(path, format!("tokenizer.ggml.pre {name:?} is not known here; --tokenizer names another tokenizer"))
                })?;
                settings.add_bos = settings.add_bos.or(Some(pre.add_bos));
                let tokenizer = byte_level(file, &tokens, &pre)?;
                Self::from_hugging_face(tokenizer, &settings, path)
            }
            "bert" => {
                settings.add_bos = settings.add_bos.or(Some(true));
                settings.add_eos = settings.add_eos.or(Some(true));
                Self::from_hugging_face(word_piece(&tokens, path)?, &settings, path)
            }
            other => Err(file_error(
                path,
                format!("tokenizer.ggml.model is {other:?}; llama, gpt2, bert and t5 are read"),
            )),
        }
    }
}

impl Tokens {
    fn read(file: &GgufFile) -> Result<Self, TokenizerError> {
        let path = file.path();
        let failed = |e: engine_core::Error| file_error(path, e.to_string());
        let wrong = |key: &str, wanted: &str| failed(file.wrong(key, wanted));
        let key = "tokenizer.ggml.tokens";
        let texts = file.array(key).map_err(failed)?.and_then(|a| a.texts());
        let texts = texts.ok_or_else(|| wrong(key, "a list of texts"))?;
        if texts.len() > MAX_TOKEN_ID as usize {
            return Err(wrong(key, &format!("a list of at most {MAX_TOKEN_ID} texts")));
        }
        let numbers = |key: &str| -> Result<Option<Vec<f64>>, TokenizerError> {
            let Some(array) = file.array(key).map_err(failed)? else { return Ok(None) };
            let numbers = array.numbers().filter(|n| n.len() == texts.len());
            numbers.map(Some).ok_or_else(|| wrong(key, "one number for each token"))
        };
        let scores = numbers("tokenizer.ggml.scores")?;
        let kinds = numbers("tokenizer.ggml.token_type")?;
        let kind = |n: &f64| match *n as i64 {
            2 => PieceKind::Unknown,
            3 => PieceKind::Control,
            4 => PieceKind::UserDefined,
            5 => PieceKind::Unused,
            6 => PieceKind::Byte,
            _ => PieceKind::Normal,
        };
        Ok(Tokens {
            scores: scores.map_or(vec![0.0; texts.len()], |s| s.iter().map(|x| *x as f32).collect()),
            kinds: kinds.map_or(vec![PieceKind::Normal; texts.len()], |k| k.iter().map(kind).collect()),
            texts,
        })
    }

    fn settings(&self, file: &GgufFile) -> Result<Settings, TokenizerError> {
        let failed = |e: engine_core::Error| file_error(file.path(), e.to_string());
        let flag = |name: &str| file.bool(&format!("tokenizer.ggml.{name}")).map_err(failed);
        let token = |name: &str| -> Result<Option<String>, TokenizerError> {
            let id = file.u32(&format!("tokenizer.ggml.{name}_token_id")).map_err(failed)?;
            Ok(id.and_then(|id| self.texts.get(id as usize).cloned()))
        };
        let mut settings = Settings {
            add_bos: flag("add_bos_token")?,
            add_eos: flag("add_eos_token")?,
            bos: token("bos")?.or(token("cls")?),
            eos: token("eos")?.or(token("seperator")?),
            unk: token("unknown")?,
            pad: token("padding")?,
            ..Settings::default()
        };
        for (id, (text, kind)) in (0u32..).zip(self.texts.iter().zip(&self.kinds)) {
            if matches!(kind, PieceKind::Control | PieceKind::UserDefined) && !text.is_empty() {
                let special = *kind == PieceKind::Control;
                settings.added.insert(id, AddedToken::plain(text, special));
            }
        }
        Ok(settings)
    }
}

fn piece_model(
    file: &GgufFile,
    tokens: Tokens,
    settings: &Settings,
    unigram: bool,
) -> Result<PieceModel, TokenizerError> {
    let failed = |e: engine_core::Error| file_error(file.path(), e.to_string());
    let flag = |name: &str, otherwise: bool| {
        Ok(file.bool(&format!("tokenizer.ggml.{name}")).map_err(failed)?.unwrap_or(otherwise))
    };
    let charsmap = file.array("tokenizer.ggml.precompiled_charsmap").map_err(failed)?;
    let byte = |x: &f64| (*x as i64) as u8;
    let byte_fallback = tokens.kinds.iter().filter(|k| **k == PieceKind::Byte).count() >= 256;
    let pieces = tokens.texts.into_iter().zip(tokens.scores).zip(tokens.kinds);
    Ok(PieceModel {
        unigram,
        pieces: pieces.map(|((text, score), kind)| Piece { text, score, kind }).collect(),
        byte_fallback,
        bos: settings.bos.clone(),
        eos: settings.eos.clone(),
        charsmap: charsmap.and_then(|a| a.numbers()).map_or(Vec::new(), |n| n.iter().map(byte).collect()),
        add_dummy_prefix: flag("add_space_prefix", true)?,
        remove_extra_whitespaces: flag("remove_extra_whitespaces", unigram)?,
    })
}

fn byte_level(file: &GgufFile, tokens: &Tokens, pre: &Pre) -> Result<HfTokenizer, TokenizerError> {
    let path = file.path();
    let failed = |e: tokenizers::Error| file_error(path, format!("its tokens and merges make no BPE: {e}"));
    let wrong = |wanted: &str| file_error(path, file.wrong("tokenizer.ggml.merges", wanted).to_string());
    let merges = file.array("tokenizer.ggml.merges").ok().flatten().and_then(|a| a.texts());
    let merges = merges.ok_or_else(|| wrong("a list of texts"))?;
    let vocab: Vocab = (0u32..).zip(&tokens.texts).map(|(id, text)| (text.clone(), id)).collect();
    // Byte-level tokens hold no space: the first one (after a leading character) parts a merge.
    let pair = |m: &String| {
        let at = m.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at)?;
        Some((m[..at].to_owned(), m[at + 1..].to_owned()))
    };
    let merges: Option<Vec<(String, String)>> = merges.iter().map(pair).collect();
    let merges = merges.ok_or_else(|| wrong("a list of pairs, each with a space between"))?;
    let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(pre.whole_words);
    let mut tokenizer = HfTokenizer::new(model.build().map_err(failed)?);
    if pre.nfc {
        tokenizer.with_normalizer(Some(NFC)).map_err(failed)?;
    }
    let mut steps = Vec::new();
    for step in &pre.steps {
        steps.push(match step {
            Step::Regex(pattern) => {
                let pattern = SplitPattern::Regex((*pattern).into());
                let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
                PreTokenizerWrapper::Split(split.map_err(failed)?)
            }
            Step::Digits => PreTokenizerWrapper::Digits(Digits::new(true)),
            Step::Punctuation => {
                PreTokenizerWrapper::Punctuation(Punctuation::new(SplitDelimiterBehavior::Contiguous))
            }
        });
    }
    steps.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false)));
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok(tokenizer)
}

/// GGUF marks the tokens that begin a word with U+2581 where WordPiece marks the others with `##`.
fn word_piece(tokens: &Tokens, path: &Path) -> Result<HfTokenizer, TokenizerError> {
    let failed = |e: tokenizers::Error| file_error(path, format!("its tokens make no WordPiece: {e}"));
    let spelling = |(text, kind): (&String, &PieceKind)| match text.strip_prefix('\u{2581}') {
        Some(word) => word.to_owned(),
        None if *kind == PieceKind::Normal && !text.starts_with('[') => format!("##{text}"),
        None => text.clone(),
    };
    let texts = tokens.texts.iter().zip(&tokens.kinds).map(spelling);
    let vocab: Vocab = texts.zip(0u32..).collect();
    let unknown = tokens.texts.iter().zip(&tokens.kinds).find(|(_, k)| **k == PieceKind::Unknown);
    let unknown = unknown.map_or("[UNK]".to_owned(), |(text, _)| text.clone());
    let model = WordPiece::builder().vocab(vocab).unk_token(unknown).build().map_err(failed)?;
    let mut tokenizer = HfTokenizer::new(model);
    tokenizer.with_normalizer(Some(BertNormalizer::new(true, true, None, true))).map_err(failed)?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_decoder(Some(tokenizers::decoders::wordpiece::WordPiece::new("##".to_owned(), false)));
    Ok(tokenizer)
}

//! Tokenizers: text to ids and back, read from the files beside a checkpoint.
//!
//! In this order: `tokenizer.json` (Hugging Face), `tokenizer.model` (SentencePiece, run natively), `vocab.json` with
//! `merges.txt` (byte-level BPE). `tokenizer_config.json` and its companions name the special tokens.
//!
//! Whether bos and eos are added: a `tokenizer.json` says it itself in its post-processor, and
//! `add_bos_token`/`add_eos_token` count only where that adds nothing; for the other two kinds these settings decide
//! (absent, a SentencePiece tokenizer adds bos, as Llama's does).

mod byte_level;
mod contain;
mod gguf;
mod longest;
mod settings;
mod split;
mod table;

use std::path::Path;

use super::detokenize::{self, DecodeOptions};
use super::sentencepiece::{Place, SentencePiece};
use contain::contained;
use settings::{AddedToken, Settings};
use split::{Segment, Splitter};
pub(crate) use table::{Decoding, Invalid, Leading, TokenTable};
use table::{TokenFlags, byte_level_bytes, piece_bytes};

/// Largest id that a tokenizer may have; more is taken for a damaged file.
const MAX_TOKEN_ID: u32 = 16_000_000;

/// A tokenizer with everything that its checkpoint says about it.
#[derive(Debug)]
pub struct Tokenizer {
    encoder: Encoder,
    table: TokenTable,
    decoding: Decoding,
    specials: SpecialIds,
    bos_before: Option<u32>,
    eos_after: Option<u32>,
    longest_chars: Option<usize>,
}

/// The ids of the named special tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Stands for what the vocabulary lacks.
    pub unk: Option<u32>,
    /// Fills up batches.
    pub pad: Option<u32>,
}

/// Whether encoding adds the tokenizer's special tokens (bos, eos) around the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddSpecial {
    /// As the tokenizer is set up: for a prompt that is plain text.
    Yes,
    /// Only the text: for a prompt from a chat template, which writes them itself.
    No,
}

/// Why a tokenizer could not be loaded, or a text not encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// The directory holds no tokenizer.
    #[error(
        "{directory}: no tokenizer here; looked for tokenizer.json, tokenizer.model, and vocab.json with merges.txt \
         (--tokenizer names another directory)"
    )]
    Missing { directory: String },
    /// A file is there, but can't be read as what it should be.
    #[error("{path}: {reason}")]
    File { path: String, reason: String },
    /// The tokenizer does not belong to the model.
    #[error(
        "the tokenizer does not match the model: token {token:?} has id {id}, but the model's vocabulary has \
         {model_vocab} entries (ids below that); check --tokenizer"
    )]
    BeyondVocabulary { token: String, id: u32, model_vocab: usize },
    /// The tokenizer failed on this text.
    #[error("the text could not be tokenized: {0}")]
    Encode(String),
}

#[derive(Debug)]
enum Encoder {
    HuggingFace(Box<tokenizers::Tokenizer>),
    SentencePiece { model: Box<SentencePiece>, splitter: Box<Splitter>, place_after_token: Place },
}

impl Tokenizer {
    /// Loads the tokenizer of the checkpoint in `directory`.
    ///
    /// # Errors
    /// [`TokenizerError::Missing`] or [`TokenizerError::File`].
    pub fn from_directory(directory: &Path) -> Result<Self, TokenizerError> {
        let settings = Settings::read(directory)?;
        let path = directory.join("tokenizer.json");
        if let Some(bytes) = settings::read_if_there(&path)? {
            let refused = |error: String| file_error(&path, format!("is no tokenizer: {error}"));
            // Told apart from what is JSON and no tokenizer, for a message that says where.
            serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).map_err(|e| refused(e.to_string()))?;
            let read = || {
                let tokenizer =
                    tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| refused(e.to_string()))?;
                Self::from_hugging_face(tokenizer, &settings, &path)
            };
            return contained(read).map_err(refused)?;
        }
        let path = directory.join("tokenizer.model");
        if let Some(bytes) = settings::read_if_there(&path)? {
            let model = SentencePiece::from_bytes(&bytes).map_err(|why| file_error(&path, why))?;
            return Self::from_sentencepiece(model, &settings, &path);
        }
        if directory.join("vocab.json").is_file() && directory.join("merges.txt").is_file() {
            let tokenizer = byte_level::load(directory, &settings)?;
            return Self::from_hugging_face(tokenizer, &settings, &directory.join("vocab.json"));
        }
        Err(TokenizerError::Missing { directory: directory.display().to_string() })
    }

    /// The ids of `text`. Text that spells a special token becomes that token.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`], for vocabularies that can't express every text.
    pub fn encode(&self, text: &str, add_special: AddSpecial) -> Result<Vec<u32>, TokenizerError> {
        let add_special = add_special == AddSpecial::Yes;
        let mut ids: Vec<u32> = self.bos_before.filter(|_| add_special).into_iter().collect();
        match &self.encoder {
            Encoder::HuggingFace(tokenizer) => {
                let encoding = contained(|| tokenizer.encode_fast(text, add_special));
                let encoding = encoding.map_err(TokenizerError::Encode)?;
                let encoding = encoding.map_err(|error| TokenizerError::Encode(error.to_string()))?;
                ids.extend_from_slice(encoding.get_ids());
            }
            Encoder::SentencePiece { model, splitter, place_after_token } => {
                let mut place = Place::Start;
                for segment in splitter.split(text) {
                    match segment {
                        Segment::Text(text) => ids.extend(model.encode(text, place)),
                        Segment::Token(id) => ids.push(id),
                    }
                    place = *place_after_token;
                }
            }
        }
        ids.extend(self.eos_after.filter(|_| add_special));
        Ok(ids)
    }

    /// The text of `ids`. Ids without a token give nothing; bytes that are no UTF-8 give U+FFFD.
    pub fn decode(&self, ids: &[u32], options: DecodeOptions) -> String {
        detokenize::decode(self, ids, options)
    }

    /// Most characters of a text that one token stands for; `None` without a bound.
    pub fn longest_token_chars(&self) -> Option<usize> {
        self.longest_chars
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.table.len()
    }

    /// Checks that every id fits a model with `model_vocab` rows in its embedding.
    ///
    /// # Errors
    /// [`TokenizerError::BeyondVocabulary`] naming the largest token.
    pub fn check_fits(&self, model_vocab: usize) -> Result<(), TokenizerError> {
        match self.table.len().checked_sub(1).filter(|last| *last >= model_vocab) {
            None => Ok(()),
            Some(last) => {
                let id = u32::try_from(last).unwrap_or(u32::MAX);
                let token = self.token_string(id).unwrap_or_default();
                Err(TokenizerError::BeyondVocabulary { token, id, model_vocab })
            }
        }
    }

    /// The vocabulary's own spelling of `id` (`Ġhello`, `▁Once`, `<0x0A>`), if the id names a token.
    pub fn token_string(&self, id: u32) -> Option<String> {
        match &self.encoder {
            Encoder::HuggingFace(tokenizer) => tokenizer.id_to_token(id),
            Encoder::SentencePiece { model, .. } => match model.pieces().get(id as usize) {
                Some(piece) if !self.table.flags(id).added => Some(piece.text.clone()),
                _ => self
                    .table
                    .flags(id)
                    .exists
                    .then(|| String::from_utf8_lossy(self.table.bytes(id)).into_owned()),
            },
        }
    }

    /// The id of a token by the vocabulary's own spelling.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        match &self.encoder {
            Encoder::HuggingFace(tokenizer) => tokenizer.token_to_id(token),
            Encoder::SentencePiece { model, splitter, .. } => match splitter.split(token).as_slice() {
                [Segment::Token(id)] => Some(*id),
                _ => model
                    .pieces()
                    .iter()
                    .position(|piece| piece.text == token)
                    .and_then(|at| u32::try_from(at).ok()),
            },
        }
    }

    /// The text of one token, as log-probabilities show it: a leading space stays; bytes of a character that is cut
    /// over several tokens show as U+FFFD.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.token_bytes(id)).into_owned()
    }

    /// The bytes of one token; those of a character that is cut over several tokens are the part it has.
    pub fn token_bytes(&self, id: u32) -> std::borrow::Cow<'_, [u8]> {
        match (self.decoding, &self.encoder) {
            (Decoding::Windowed, Encoder::HuggingFace(tokenizer)) => {
                std::borrow::Cow::Owned(tokenizer.decode(&[id], false).unwrap_or_default().into_bytes())
            }
            _ => std::borrow::Cow::Borrowed(self.table.bytes(id)),
        }
    }

    /// Whether `skip_special_tokens` leaves `id` out of the text.
    pub fn is_special(&self, id: u32) -> bool {
        self.table.flags(id).special
    }

    /// Whether `id` names a token.
    pub fn is_token(&self, id: u32) -> bool {
        self.table.flags(id).exists
    }

    /// The named special tokens.
    pub fn special_ids(&self) -> SpecialIds {
        self.specials
    }

    pub(crate) fn decoding(&self) -> Decoding {
        self.decoding
    }

    pub(crate) fn table(&self) -> &TokenTable {
        &self.table
    }

    /// Decodes a window with the tokenizer's own decoder; for [`Decoding::Windowed`] only.
    pub(crate) fn decode_window(&self, ids: &[u32]) -> String {
        match &self.encoder {
            Encoder::HuggingFace(tokenizer) => {
                contained(|| tokenizer.decode(ids, false).unwrap_or_default()).unwrap_or_default()
            }
            Encoder::SentencePiece { .. } => String::new(),
        }
    }

    fn from_hugging_face(
        mut tokenizer: tokenizers::Tokenizer,
        settings: &Settings,
        path: &Path,
    ) -> Result<Self, TokenizerError> {
        let refused = |error: tokenizers::Error| file_error(path, format!("is no tokenizer: {error}"));
        // A prompt is neither cut nor filled up, whatever the tokenizer was trained with.
        tokenizer.with_truncation(None).map_err(refused)?;
        tokenizer.with_padding(None);
        add_missing_tokens(&mut tokenizer, settings).map_err(refused)?;
        let last = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        if last > MAX_TOKEN_ID {
            return Err(file_error(
                path,
                format!("has a token with id {last}; at most {MAX_TOKEN_ID} is accepted"),
            ));
        }
        let decoder = tokenizer.get_decoder().and_then(|decoder| serde_json::to_value(decoder).ok());
        let decoding = decoder.as_ref().map_or(Decoding::Windowed, Decoding::of_decoder);
        let table = hugging_face_table(&tokenizer, settings, decoding, last);
        let id = |text: &Option<String>| text.as_ref().and_then(|text| tokenizer.token_to_id(text));
        let specials = SpecialIds {
            bos: id(&settings.bos),
            eos: id(&settings.eos),
            unk: id(&settings.unk),
            pad: id(&settings.pad),
        };
        let longest_chars = longest::of_hugging_face(&tokenizer, &table);
        let adds_nothing = tokenizer.encode_fast("", true).is_ok_and(|encoding| encoding.is_empty());
        Ok(Self {
            encoder: Encoder::HuggingFace(Box::new(tokenizer)),
            table,
            decoding,
            specials,
            bos_before: specials.bos.filter(|_| adds_nothing && settings.add_bos == Some(true)),
            eos_after: specials.eos.filter(|_| adds_nothing && settings.add_eos == Some(true)),
            longest_chars,
        })
    }

    fn from_sentencepiece(
        model: SentencePiece,
        settings: &Settings,
        path: &Path,
    ) -> Result<Self, TokenizerError> {
        let added = added_to_sentencepiece(&model, settings);
        let last = added.iter().map(|(id, _)| *id).max().unwrap_or(0);
        if last > MAX_TOKEN_ID {
            return Err(file_error(
                path,
                format!("an added token has id {last}; at most {MAX_TOKEN_ID} is accepted"),
            ));
        }
        let id_of = |text: &Option<String>, otherwise: Option<u32>| {
            let found = text.as_ref().and_then(|text| added.iter().find(|(_, token)| token.content == *text));
            found.map(|(id, _)| *id).or(otherwise)
        };
        let specials = SpecialIds {
            bos: id_of(&settings.bos, model.bos_id()),
            eos: id_of(&settings.eos, model.eos_id()),
            unk: id_of(&settings.unk, Some(model.unknown_id())),
            pad: id_of(&settings.pad, None),
        };
        let leading = if model.add_dummy_prefix() { Leading::StripOneSpace } else { Leading::Keep };
        let table = sentencepiece_table(&model, &added, settings);
        let eats_space = added.iter().any(|(_, token)| token.lstrip || token.rstrip);
        let longest_chars = longest::of_sentencepiece(&model, &table, eats_space);
        let place_after_token =
            if settings.legacy == Some(false) { Place::Continuation } else { Place::Start };
        Ok(Self {
            table,
            decoding: Decoding::Bytes { leading, invalid: Invalid::PerByte },
            specials,
            bos_before: specials.bos.filter(|_| settings.add_bos.unwrap_or(true)),
            eos_after: specials.eos.filter(|_| settings.add_eos.unwrap_or(false)),
            longest_chars,
            encoder: Encoder::SentencePiece {
                model: Box::new(model),
                splitter: Box::new(Splitter::new(added)),
                place_after_token,
            },
        })
    }
}

fn file_error(path: &Path, reason: String) -> TokenizerError {
    TokenizerError::File { path: path.display().to_string(), reason }
}

/// Adds what `tokenizer_config.json` names and the tokenizer lacks, in the order of the ids it wants.
fn add_missing_tokens(tokenizer: &mut tokenizers::Tokenizer, settings: &Settings) -> tokenizers::Result<()> {
    let named = settings.special.iter().map(|content| AddedToken::plain(content, true));
    for token in settings.added.values().cloned().chain(named) {
        let known = tokenizer.get_added_vocabulary().get_vocab().contains_key(&token.content);
        if known || token.content.is_empty() {
            continue;
        }
        let added = tokenizers::AddedToken::from(token.content, token.special)
            .lstrip(token.lstrip)
            .rstrip(token.rstrip)
            .single_word(token.single_word)
            .normalized(!token.special);
        match token.special {
            true => tokenizer.add_special_tokens([added])?,
            false => tokenizer.add_tokens([added])?,
        };
    }
    Ok(())
}

fn hugging_face_table(
    tokenizer: &tokenizers::Tokenizer,
    settings: &Settings,
    decoding: Decoding,
    last: u32,
) -> TokenTable {
    let added = tokenizer.get_added_tokens_decoder();
    let mut table = TokenTable::default();
    for id in 0..=last {
        let Some(token) = tokenizer.id_to_token(id) else {
            table.push(b"", TokenFlags::default());
            continue;
        };
        let entry = added.get(&id);
        let flags = TokenFlags {
            exists: true,
            special: entry.is_some_and(|entry| entry.special) || settings.special.contains(&token),
            added: entry.is_some(),
        };
        match decoding {
            Decoding::Bytes { invalid: Invalid::PerSequence, .. } => {
                table.push(&byte_level_bytes(&token), flags)
            }
            _ => table.push(&piece_bytes(&token), flags),
        }
    }
    table
}

/// The control and unknown pieces of the model, and what the settings add.
fn added_to_sentencepiece(model: &SentencePiece, settings: &Settings) -> Vec<(u32, AddedToken)> {
    use super::sentencepiece::PieceKind;
    let reserved = model.pieces().iter().zip(0_u32..).filter(|(piece, id)| {
        matches!(piece.kind, PieceKind::Control | PieceKind::Unknown) && !settings.added.contains_key(id)
    });
    let reserved = reserved.map(|(piece, id)| (id, AddedToken::plain(&piece.text, true)));
    let configured = settings.added.iter().map(|(id, token)| (*id, token.clone()));
    configured.chain(reserved).filter(|(_, token)| !token.content.is_empty()).collect()
}

fn sentencepiece_table(
    model: &SentencePiece,
    added: &[(u32, AddedToken)],
    settings: &Settings,
) -> TokenTable {
    use super::sentencepiece::PieceKind;
    let by_id: std::collections::HashMap<u32, &AddedToken> =
        added.iter().map(|(id, token)| (*id, token)).collect();
    let last_added = added.iter().map(|(id, _)| *id as usize + 1).max().unwrap_or(0);
    let mut table = TokenTable::default();
    for id in 0..model.pieces().len().max(last_added) {
        let piece = model.pieces().get(id);
        let token = u32::try_from(id).ok().and_then(|id| by_id.get(&id));
        let special = token.is_some_and(|token| token.special || settings.special.contains(&token.content));
        let flags =
            TokenFlags { exists: token.is_some() || piece.is_some(), special, added: token.is_some() };
        match (token, piece) {
            (Some(token), _) => table.push(token.content.as_bytes(), flags),
            (None, Some(piece)) if piece.kind == PieceKind::Byte => {
                table.push(&piece_bytes(&piece.text), flags)
            }
            (None, Some(piece)) => {
                table.push(piece.text.replace(super::sentencepiece::SPACE_SYMBOL, " ").as_bytes(), flags);
            }
            (None, None) => table.push(b"", flags),
        }
    }
    table
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;

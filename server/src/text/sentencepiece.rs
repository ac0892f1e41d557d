//! SentencePiece models (`tokenizer.model`), read and run natively: BPE and unigram, with the normalization, byte
//! fallback and user-defined symbols of the model file. Gives the ids that the `sentencepiece` library gives.
//!
//! Source of the algorithms: the SentencePiece library (Kudo and Richardson, 2018), its normalizer, `bpe_model`
//! and the optimized Viterbi of `unigram_model`.

mod bpe;
mod normalizer;
mod proto;
mod unigram;

use std::collections::HashMap;

use super::trie::Trie;
use normalizer::Normalizer;
use proto::ModelType;
pub use proto::{Piece, PieceKind};

/// The escaped space of SentencePiece, U+2581.
pub const SPACE_SYMBOL: char = '\u{2581}';

/// Where in a prompt a text stands; decides whether the model's dummy prefix (a space) is put before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At the start: with the dummy prefix, if the model has one.
    Start,
    /// After a special token, for tokenizers that add no second prefix: without it.
    Continuation,
}

/// A SentencePiece model ready to encode.
#[derive(Debug)]
pub struct SentencePiece {
    pieces: Vec<Piece>,
    /// Normal, user-defined and unused pieces by their text.
    by_text: HashMap<String, u32>,
    byte_ids: Option<Box<[u32; 256]>>,
    unknown_id: u32,
    bos_id: Option<u32>,
    eos_id: Option<u32>,
    add_dummy_prefix: bool,
    normalizer: Normalizer,
    user_defined: Trie,
    algorithm: Algorithm,
}

/// A SentencePiece model as GGUF metadata has it.
#[derive(Debug)]
pub struct Gguf {
    pub unigram: bool,
    /// By id.
    pub pieces: Vec<Piece>,
    pub byte_fallback: bool,
    pub bos: Option<String>,
    pub eos: Option<String>,
    /// The compiled normalization, as the model file has it; empty for none.
    pub charsmap: Vec<u8>,
    pub add_dummy_prefix: bool,
    pub remove_extra_whitespaces: bool,
}

#[derive(Debug)]
enum Algorithm {
    Bpe,
    Unigram(unigram::Lattice),
}

impl SentencePiece {
    /// Reads the bytes of a `tokenizer.model`.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the file: no protobuf, no pieces, no unknown piece, a model type
    /// that is neither BPE nor unigram.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        Self::from_model(proto::Model::parse(bytes)?)
    }

    /// From what a GGUF file says of such a model.
    ///
    /// # Errors
    /// As [`SentencePiece::from_bytes`].
    pub fn from_gguf(model: Gguf) -> Result<Self, String> {
        Self::from_model(proto::Model {
            pieces: model.pieces,
            model_type: if model.unigram { ModelType::Unigram } else { ModelType::Bpe },
            byte_fallback: model.byte_fallback,
            whitespace_as_suffix: false,
            bos_piece: model.bos.unwrap_or_else(|| "<s>".to_owned()),
            eos_piece: model.eos.unwrap_or_else(|| "</s>".to_owned()),
            charsmap: model.charsmap,
            add_dummy_prefix: model.add_dummy_prefix,
            remove_extra_whitespaces: model.remove_extra_whitespaces,
            escape_whitespaces: true,
        })
    }

    fn from_model(model: proto::Model) -> Result<Self, String> {
        let ids = |wanted: fn(&PieceKind) -> bool| {
            let pieces = model.pieces.iter().zip(0_u32..);
            pieces.filter(move |(piece, _)| wanted(&piece.kind)).map(|(piece, id)| (piece.text.as_str(), id))
        };
        let in_vocabulary: fn(&PieceKind) -> bool =
            |kind| matches!(kind, PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused);
        let control = |name: &str| {
            ids(|kind| *kind == PieceKind::Control).find(|(text, _)| *text == name).map(|(_, id)| id)
        };
        let unknown_id = ids(|kind| *kind == PieceKind::Unknown)
            .map(|(_, id)| id)
            .next()
            .ok_or("it has no unknown piece")?;
        let user_defined = Trie::new(ids(|kind| *kind == PieceKind::UserDefined));
        let algorithm = match model.model_type {
            ModelType::Bpe => Algorithm::Bpe,
            ModelType::Unigram => Algorithm::Unigram(unigram::Lattice::new(
                &model.pieces,
                Trie::new(ids(in_vocabulary)),
                unknown_id,
            )),
        };
        Ok(Self {
            by_text: ids(in_vocabulary).map(|(text, id)| (text.to_owned(), id)).collect(),
            byte_ids: byte_ids(&model)?,
            unknown_id,
            bos_id: control(&model.bos_piece),
            eos_id: control(&model.eos_piece),
            add_dummy_prefix: model.add_dummy_prefix,
            normalizer: Normalizer::new(&model)?,
            user_defined,
            algorithm,
            pieces: model.pieces,
        })
    }

    /// The ids of `text`, without bos and eos. Text that looks like a control piece is plain text here.
    pub fn encode(&self, text: &str, place: Place) -> Vec<u32> {
        let normalized = self.normalizer.normalize(text, &self.user_defined, place);
        let pieces = match &self.algorithm {
            Algorithm::Bpe => bpe::encode(&normalized, &self.by_text, &self.pieces, &self.user_defined),
            Algorithm::Unigram(lattice) => lattice.encode(&normalized),
        };
        let mut ids = Vec::with_capacity(pieces.len());
        let mut after_unknown = false;
        for (piece, id) in pieces {
            let id = id.unwrap_or(self.unknown_id);
            let is_unknown = id == self.unknown_id;
            match &self.byte_ids {
                Some(byte_ids) if is_unknown => ids.extend(piece.bytes().map(|byte| byte_ids[byte as usize])),
                // A run of unknown pieces is one unknown id.
                _ if is_unknown && after_unknown => {}
                _ => ids.push(id),
            }
            after_unknown = is_unknown;
        }
        ids
    }

    /// Every piece, by id.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The control piece that begins a text, if the model has one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos_id
    }

    /// The control piece that ends a text, if the model has one.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos_id
    }

    /// What stands for text that the vocabulary can't express.
    pub fn unknown_id(&self) -> u32 {
        self.unknown_id
    }

    /// Whether normalizing drops and joins nothing.
    pub fn keeps_text(&self) -> bool {
        self.normalizer.keeps_text()
    }

    /// Whether a space is put before the text, which decoding takes away again.
    pub fn add_dummy_prefix(&self) -> bool {
        self.add_dummy_prefix
    }
}

/// The byte a piece such as `<0x0A>` stands for.
pub(crate) fn byte_of_piece(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

fn byte_ids(model: &proto::Model) -> Result<Option<Box<[u32; 256]>>, String> {
    if !model.byte_fallback {
        return Ok(None);
    }
    let mut ids = Box::new([u32::MAX; 256]);
    for (piece, id) in model.pieces.iter().zip(0..) {
        if let Some(byte) = byte_of_piece(&piece.text).filter(|_| piece.kind == PieceKind::Byte) {
            ids[byte as usize] = id;
        }
    }
    match ids.iter().position(|id| *id == u32::MAX) {
        None => Ok(Some(ids)),
        Some(byte) => Err(format!("it promises byte fallback but has no piece <0x{byte:02X}>")),
    }
}

//! Reads the protobuf of a SentencePiece model: the few fields that encoding needs, all others skipped.

/// Most pieces that are read.
const MAX_PIECES: usize = 4_000_000;

/// What a piece is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceKind {
    /// Ordinary text.
    Normal,
    /// Stands for text outside the vocabulary.
    Unknown,
    /// `<s>` and its like: never the result of encoding text.
    Control,
    /// Always one token, wherever its text occurs.
    UserDefined,
    /// In the vocabulary but never used.
    Unused,
    /// One byte of text outside the vocabulary.
    Byte,
}

/// One entry of the vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The text, with U+2581 for a space.
    pub text: String,
    /// Merge priority (BPE) or log probability (unigram).
    pub score: f32,
    /// What it is for.
    pub kind: PieceKind,
}

/// How a model cuts text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ModelType {
    Unigram,
    Bpe,
}

/// The fields of `ModelProto` that encoding needs, with the defaults of `sentencepiece_model.proto`.
#[derive(Debug)]
pub(super) struct Model {
    pub pieces: Vec<Piece>,
    pub model_type: ModelType,
    pub byte_fallback: bool,
    pub whitespace_as_suffix: bool,
    pub bos_piece: String,
    pub eos_piece: String,
    pub charsmap: Vec<u8>,
    pub add_dummy_prefix: bool,
    pub remove_extra_whitespaces: bool,
    pub escape_whitespaces: bool,
}

impl Model {
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut model = Self {
            pieces: Vec::new(),
            model_type: ModelType::Unigram,
            byte_fallback: false,
            whitespace_as_suffix: false,
            bos_piece: "<s>".into(),
            eos_piece: "</s>".into(),
            charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        };
        let mut reader = Reader { bytes };
        while let Some((field, value)) = reader.next()? {
            match (field, value) {
                (1, Value::Bytes(piece)) if model.pieces.len() < MAX_PIECES => {
                    model.pieces.push(parse_piece(piece)?)
                }
                (1, Value::Bytes(_)) => return Err(format!("it has more than {MAX_PIECES} pieces")),
                (2, Value::Bytes(spec)) => model.parse_trainer(spec)?,
                (3, Value::Bytes(spec)) => model.parse_normalizer(spec)?,
                _ => {}
            }
        }
        match model.pieces.is_empty() {
            true => Err("it holds no pieces, so it is no SentencePiece model".into()),
            false => Ok(model),
        }
    }

    fn parse_trainer(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut reader = Reader { bytes };
        while let Some((field, value)) = reader.next()? {
            match (field, value) {
                (3, Value::Varint(1)) => self.model_type = ModelType::Unigram,
                (3, Value::Varint(2)) => self.model_type = ModelType::Bpe,
                (3, Value::Varint(other)) => {
                    return Err(format!(
                        "its model type is {other}; only unigram (1) and BPE (2) can be run"
                    ));
                }
                (24, Value::Varint(flag)) => self.whitespace_as_suffix = flag != 0,
                (35, Value::Varint(flag)) => self.byte_fallback = flag != 0,
                (46, Value::Bytes(text)) => self.bos_piece = text_of(text)?,
                (47, Value::Bytes(text)) => self.eos_piece = text_of(text)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn parse_normalizer(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut reader = Reader { bytes };
        while let Some((field, value)) = reader.next()? {
            match (field, value) {
                (2, Value::Bytes(charsmap)) => self.charsmap = charsmap.to_vec(),
                (3, Value::Varint(flag)) => self.add_dummy_prefix = flag != 0,
                (4, Value::Varint(flag)) => self.remove_extra_whitespaces = flag != 0,
                (5, Value::Varint(flag)) => self.escape_whitespaces = flag != 0,
                _ => {}
            }
        }
        Ok(())
    }
}

fn parse_piece(bytes: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceKind::Normal };
    let mut reader = Reader { bytes };
    while let Some((field, value)) = reader.next()? {
        match (field, value) {
            (1, Value::Bytes(text)) => piece.text = text_of(text)?,
            (2, Value::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Value::Varint(kind)) => {
                piece.kind = match kind {
                    2 => PieceKind::Unknown,
                    3 => PieceKind::Control,
                    4 => PieceKind::UserDefined,
                    5 => PieceKind::Unused,
                    6 => PieceKind::Byte,
                    _ => PieceKind::Normal,
                }
            }
            _ => {}
        }
    }
    Ok(piece)
}

fn text_of(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "a piece is not UTF-8".into())
}

enum Value<'a> {
    Varint(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
    Other,
}

/// Walks the fields of one protobuf message.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, String> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Other
            }
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(usize::try_from(length).map_err(|_| truncated())?)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Value::Fixed32(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            }
            other => return Err(format!("it is no protobuf (wire type {other})")),
        };
        Ok(Some((key >> 3, value)))
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("it is no protobuf (a number without end)".into())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or_else(truncated)?;
        self.bytes = rest;
        Ok(taken)
    }
}

fn truncated() -> String {
    "it ends in the middle of a field; the file is truncated or no SentencePiece model".into()
}

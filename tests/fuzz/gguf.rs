//! GGUF: metadata, tensors, the configuration and the tokenizer that the metadata makes.

use std::cell::OnceCell;
use std::path::PathBuf;

use engine_core::config::ModelConfig;
use engine_core::layers::decoder::DecoderPlan;
use engine_core::loader::gguf::{GgufFile, GgufTensor};
use engine_core::loader::gguf_model::GgufModel;
use engine_core::loader::source::WeightSource;
use engine_core::quant::WeightFormat;
use server::text::detokenize::DecodeOptions;
use server::text::tokenizer::{AddSpecial, Tokenizer};

/// Opens the file as the program does, and reads all that is in it.
pub fn run(data: &[u8]) {
    thread_local! {
        static DIR: OnceCell<PathBuf> = const { OnceCell::new() };
    }
    let path = DIR.with(|dir| dir.get_or_init(|| super::directory("gguf")).join("model.gguf"));
    // A file of its own for each input: the last one may still be mapped.
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, data).unwrap();
    let Ok(model) = GgufModel::open(&path) else { return };
    values(model.metadata());
    model.metadata().tensors().values().for_each(check_bytes);
    if let Ok(map) = model.config()
        && let Ok(config) = ModelConfig::from_json(map)
        && let Ok(family) = engine_core::models::find(&config)
        && let Ok(spec) = (family.spec)(&config)
    {
        let plan = DecoderPlan::new(&config, spec);
        assert!(!plan.kv_groups(engine_core::DType::F32, 16).is_empty());
    }
    parts(&model);
    tokenizer(model.metadata());
}

/// Every metadata value as every type.
fn values(file: &GgufFile) {
    for key in file.keys() {
        let _ = (file.u32(key), file.f64(key), file.text(key), file.bool(key));
        if let Ok(Some(array)) = file.array(key) {
            let read = array.texts().map(|t| t.len()).or(array.numbers().map(|n| n.len()));
            assert_eq!(read.map(|n| n as u64), Some(array.len()), "{key}");
        }
    }
    let _ = (server::gguf::templates(file), server::gguf::special_tokens(file), server::gguf::end_ids(file));
}

fn check_bytes(tensor: &GgufTensor) {
    let count: u64 = tensor.shape.iter().product();
    let bytes = match tensor.format {
        WeightFormat::Ggml(t) => t.bytes_of(count),
        format => format.dense().map(|dtype| count * dtype.size_bytes() as u64),
    };
    assert_eq!(bytes, Some(tensor.bytes.len() as u64));
}

/// Some weights of a model, under every shape that is there.
fn parts(model: &GgufModel) {
    let shapes = model.metadata().tensors().values().filter_map(|t| match t.shape[..] {
        [k] => Some([1, k]),
        [n, k] => Some([n, k]),
        _ => None,
    });
    for shape in shapes.take(8) {
        for name in ["embed_tokens", "norm", "layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj"] {
            if let Ok(part) = model.part(&format!("model.{name}.weight"), shape) {
                assert_eq!(part.shape, shape);
            }
        }
    }
}

/// Whether nothing of the file is refused: what is made of such files gets far.
pub fn is_whole(data: &[u8]) -> bool {
    let path = super::directory("gguf-seed").join("model.gguf");
    std::fs::write(&path, data).unwrap();
    let model = GgufModel::open(&path).unwrap();
    let config = ModelConfig::from_json(model.config().unwrap()).unwrap();
    (engine_core::models::find(&config).unwrap().spec)(&config).unwrap();
    Tokenizer::from_gguf(model.metadata()).unwrap().encode("hello", AddSpecial::Yes).is_ok()
}

fn tokenizer(file: &GgufFile) {
    let Ok(tokenizer) = Tokenizer::from_gguf(file) else { return };
    let _ = tokenizer.check_fits(2048);
    if let Ok(ids) = tokenizer.encode("hello <s> wörld\n 12", AddSpecial::Yes) {
        let _ = tokenizer.decode(&ids, DecodeOptions::default());
    }
    let _ = tokenizer.decode(&[0, 1, 2, 3, 300, u32::MAX], DecodeOptions::default());
}

/// A small model of each architecture and kind of tokenizer.
pub fn seeds() -> Vec<Vec<u8>> {
    let letters = ["<s>", "h", "e", "l", "o", "he", "ll", "hell", "Ġ", "<|eot_id|>"];
    let kinds = [3, 1, 1, 1, 1, 1, 1, 1, 1, 3];
    let pieces = ["<unk>", "<s>", "</s>", "▁", "h", "e", "l", "o", "▁he", "llo", "<0x0A>", "<tool>"];
    let piece_kinds = [2, 3, 3, 1, 1, 1, 1, 1, 1, 1, 6, 4];
    let words = ["[UNK]", "[CLS]", "[SEP]", "▁hello", "lo", "▁h", "12"];
    let byte_level = |pre: &str| {
        let mut file = Writer::tokenizer("gpt2", &letters, &kinds);
        file.text("tokenizer.ggml.pre", pre);
        file.texts("tokenizer.ggml.merges", &["h e", "l l", "he ll"]);
        file.number("tokenizer.ggml.bos_token_id", 0).number("tokenizer.ggml.eot_token_id", 9);
        file
    };
    let scored = |model: &str| {
        let mut file = Writer::tokenizer(model, &pieces, &piece_kinds);
        file.floats("tokenizer.ggml.scores", &[0., 0., 0., -1., -2., -3., -4., -5., -6., -7., 0., 0.]);
        file.number("tokenizer.ggml.bos_token_id", 1).number("tokenizer.ggml.unknown_token_id", 0);
        file.flag("tokenizer.ggml.add_space_prefix", true);
        file.text("tokenizer.chat_template", "{{ messages[0].content }}");
        file
    };
    let mut unigram = scored("t5");
    unigram.array("tokenizer.ggml.precompiled_charsmap", 0, &[[4, 0, 0, 0], [1, 2, 3, 4]].concat(), 8);
    vec![
        scored("llama").model("llama", pieces.len() as u64),
        unigram.model("llama", pieces.len() as u64),
        byte_level("llama-bpe").model("qwen3", letters.len() as u64),
        byte_level("deepseek-v3").model("qwen2", letters.len() as u64),
        Writer::tokenizer("bert", &words, &[2, 3, 3, 1, 1, 1, 1]).model("llama", words.len() as u64),
    ]
}

/// Builds a file: entries first, then tensors and data.
struct Writer {
    entries: Vec<u8>,
    count: u64,
}

const TEXT: u32 = 8;

fn put_text(into: &mut Vec<u8>, text: &str) {
    into.extend((text.len() as u64).to_le_bytes());
    into.extend(text.bytes());
}

impl Writer {
    fn tokenizer(model: &str, tokens: &[&str], kinds: &[i32]) -> Writer {
        let mut file = Writer { entries: Vec::new(), count: 0 };
        file.text("tokenizer.ggml.model", model).texts("tokenizer.ggml.tokens", tokens);
        let kinds: Vec<u8> = kinds.iter().flat_map(|kind| kind.to_le_bytes()).collect();
        file.array("tokenizer.ggml.token_type", 5, &kinds, tokens.len() as u64);
        file
    }

    fn entry(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
        put_text(&mut self.entries, key);
        self.entries.extend(kind.to_le_bytes());
        self.entries.extend(value);
        self.count += 1;
        self
    }

    fn text(&mut self, key: &str, text: &str) -> &mut Self {
        let mut value = Vec::new();
        put_text(&mut value, text);
        self.entry(key, TEXT, &value)
    }

    fn number(&mut self, key: &str, number: u32) -> &mut Self {
        self.entry(key, 4, &number.to_le_bytes())
    }

    fn flag(&mut self, key: &str, flag: bool) -> &mut Self {
        self.entry(key, 7, &[u8::from(flag)])
    }

    fn array(&mut self, key: &str, element: u32, bytes: &[u8], len: u64) -> &mut Self {
        let value = [&element.to_le_bytes()[..], &len.to_le_bytes(), bytes].concat();
        self.entry(key, 9, &value)
    }

    fn texts(&mut self, key: &str, texts: &[&str]) -> &mut Self {
        let mut bytes = Vec::new();
        texts.iter().for_each(|text| put_text(&mut bytes, text));
        self.array(key, TEXT, &bytes, texts.len() as u64)
    }

    fn floats(&mut self, key: &str, values: &[f32]) -> &mut Self {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.array(key, 6, &bytes, values.len() as u64)
    }

    /// The whole file of a model of this architecture and vocabulary.
    fn model(&mut self, arch: &str, vocab: u64) -> Vec<u8> {
        self.text("general.architecture", arch).number("split.count", 1);
        let sizes = [("embedding_length", 32), ("block_count", 1), ("feed_forward_length", 64)];
        let heads = [("context_length", 128), ("attention.head_count", 2), ("attention.head_count_kv", 1)];
        for (name, number) in sizes.into_iter().chain(heads) {
            self.number(&format!("{arch}.{name}"), number);
        }
        self.entry(&format!("{arch}.attention.layer_norm_rms_epsilon"), 6, &1e-5f32.to_le_bytes());
        self.text(&format!("{arch}.rope.scaling.type"), "linear");
        self.entry(&format!("{arch}.rope.scaling.factor"), 6, &2f32.to_le_bytes());
        // Formats of llama.cpp's numbering: Q4_0, Q8_0, F16, F32.
        let tensors: [(&str, &[u64], u32); 5] = [
            ("token_embd.weight", &[32, vocab], 2),
            ("blk.0.attn_q.weight", &[32, 32], 8),
            ("blk.0.attn_k.weight", &[32, 16], 1),
            ("output_norm.weight", &[32], 0),
            ("rope_freqs.weight", &[8], 0),
        ];
        let mut file = [&b"GGUF"[..], &3u32.to_le_bytes(), &(tensors.len() as u64).to_le_bytes()].concat();
        file.extend(self.count.to_le_bytes());
        file.extend(&self.entries);
        for (name, shape, kind) in tensors {
            put_text(&mut file, name);
            file.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|d| file.extend(d.to_le_bytes()));
            file.extend(kind.to_le_bytes());
            // All begin at the same place: less of the file is numbers that nothing looks at.
            file.extend(0u64.to_le_bytes());
        }
        let start = file.len().next_multiple_of(32);
        // The largest is attn_q: 32 rows of one block of 34 bytes.
        file.resize(start + 32 * 34, 0x3c);
        file
    }
}

//! Checkpoints as directories: sharded and not, complete and broken.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::json;

use super::*;
use crate::config::ModelConfig;
use crate::loader::shapes::decoder_tensors;
use crate::loader::testing::{TempDir, safetensors_bytes, shared_dir};

/// A safetensors file of one-byte tensors.
fn u8_file(tensors: &[(&str, u8)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    for (i, (name, _)) in tensors.iter().enumerate() {
        header.insert((*name).to_owned(), json!({"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]}));
    }
    let data: Vec<u8> = tensors.iter().map(|(_, value)| *value).collect();
    safetensors_bytes(&serde_json::Value::Object(header).to_string(), &data)
}

fn refusal(dir: &TempDir, format: LoadFormat) -> String {
    Checkpoint::open(dir.path(), format).unwrap_err().to_string()
}

fn value(c: &Checkpoint, name: &str) -> u8 {
    c.tensor(name).unwrap().bytes[0]
}

#[test]
fn an_index_leads_and_other_files_are_ignored() {
    let dir = TempDir::new("index");
    dir.write("model-00001-of-00002.safetensors", &u8_file(&[("a", 1), ("b", 9)]));
    dir.write("model-00002-of-00002.safetensors", &u8_file(&[("b", 2), ("c", 3)]));
    dir.write("consolidated.safetensors", b"not read");
    dir.write("original/consolidated.00.pth", b"not read");
    dir.write("model.safetensors", b"not read");
    dir.write("pytorch_model.bin", b"not read");
    let map = json!({"weight_map": {"a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}});
    dir.write("model.safetensors.index.json", map.to_string().as_bytes());
    let c = Checkpoint::open(dir.path(), LoadFormat::Auto).unwrap();
    assert_eq!(c.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(["a", "b", "c"].map(|n| value(&c, n)), [1, 2, 3]);
    assert_eq!((c.total_bytes(), c.file_count()), (3, 2));
    assert_eq!(c.info("a"), Some((FileDType::U8, &[1][..])));
    c.advise(Advice::WillNeed);
    let missing = c.tensor("x.c").unwrap_err().to_string();
    assert!(missing.contains("has no tensor x.c (it has 3, such as c)"), "{missing}");
}

#[test]
fn contradictions_of_the_index_are_named() {
    let dir = TempDir::new("contradictions");
    dir.write("one.safetensors", &u8_file(&[("a", 1)]));
    let index = |map: serde_json::Value| {
        dir.write("model.safetensors.index.json", json!({"weight_map": map}).to_string().as_bytes());
        refusal(&dir, LoadFormat::Auto)
    };
    let cases = [
        (json!({"a": "two.safetensors"}), "tensor a is said to be in two.safetensors, which is not there"),
        (json!({"b": "one.safetensors"}), "tensor b is said to be in "),
        (json!({"a": "../one.safetensors"}), "tensor a is in \"../one.safetensors\"; a file name is wanted"),
        (json!({"a": "/etc/passwd"}), "a file name is wanted"),
        (json!({"a": 7}), "tensor a is in 7"),
        (json!({}), "weight_map is empty"),
        (json!([]), "has no weight_map"),
    ];
    for (map, part) in cases {
        let message = index(map.clone());
        assert!(
            message.contains("model.safetensors.index.json") && message.contains(part),
            "{map}: {message}"
        );
    }
    dir.write("model.safetensors.index.json", b"{");
    assert!(refusal(&dir, LoadFormat::Auto).contains("is no valid JSON"));
}

#[test]
fn without_an_index_the_files_speak_for_themselves() {
    let dir = TempDir::new("plain");
    assert!(
        refusal(&dir, LoadFormat::Auto).contains("holds no weights; one of model.safetensors.index.json")
    );
    dir.write("weights.gguf", b"");
    assert!(refusal(&dir, LoadFormat::Auto).contains("weights.gguf is there, but not read"));
    dir.write("other.safetensors", &u8_file(&[("o", 5)]));
    assert_eq!(value(&Checkpoint::open(dir.path(), LoadFormat::Auto).unwrap(), "o"), 5);
    dir.write("another.safetensors", &u8_file(&[("o", 6)]));
    let twice = refusal(&dir, LoadFormat::Auto);
    assert!(twice.contains("tensor o stands in both") && twice.contains("another.safetensors"), "{twice}");
    dir.write("model-00001-of-00002.safetensors", &u8_file(&[("a", 1)]));
    assert!(refusal(&dir, LoadFormat::Auto).contains("is one of 2 files, but 1 are there"));
    dir.write("model-00002-of-00002.safetensors", &u8_file(&[("b", 2)]));
    let c = Checkpoint::open(dir.path(), LoadFormat::Safetensors).unwrap();
    assert_eq!(c.names().collect::<Vec<_>>(), ["a", "b"]);
    dir.write("model.safetensors", &u8_file(&[("m", 3)]));
    let c = Checkpoint::open(dir.path(), LoadFormat::Auto).unwrap();
    assert_eq!(c.names().collect::<Vec<_>>(), ["m"]);
    assert!(refusal(&dir, LoadFormat::Pt).contains("one of pytorch_model.bin.index.json, pytorch_model.bin"));
}

#[test]
fn random_weights_have_the_names_and_shapes_of_the_configuration() {
    let tensors = |architecture: &str| {
        let json = json!({"architectures": [architecture], "vocab_size": 32, "hidden_size": 16,
            "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "torch_dtype": "float32"});
        let serde_json::Value::Object(map) = json else { unreachable!() };
        decoder_tensors(&ModelConfig::from_json(map).unwrap())
    };
    let qwen3 = tensors("Qwen3ForCausalLM").unwrap();
    let shape = |name: &str| qwen3.iter().find(|t| t.name == name).unwrap().shape.clone();
    assert_eq!(qwen3.len(), 3 + 2 * 11);
    assert_eq!(shape("model.layers.1.self_attn.k_proj.weight"), [8, 16]);
    assert_eq!(shape("model.layers.0.self_attn.q_norm.weight"), [4]);
    let qwen2 = tensors("Qwen2ForCausalLM").unwrap();
    assert!(qwen2.iter().any(|t| t.name == "model.layers.0.self_attn.q_proj.bias"));
    let unknown = tensors("NovelForCausalLM").unwrap_err().to_string();
    assert!(unknown.contains("known architectures are LlamaForCausalLM"), "{unknown}");
}

#[test]
fn a_tensor_of_the_wrong_shape_or_type_is_named_with_its_file() {
    use crate::loader::source::WeightSource;
    let dir = TempDir::new("wrong");
    let header = r#"{"w":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},
        "i":{"dtype":"I64","shape":[1],"data_offsets":[8,16]}}"#;
    dir.write("model.safetensors", &safetensors_bytes(header, &[0; 16]));
    let c = Checkpoint::open(dir.path(), LoadFormat::Auto).unwrap();
    assert!(c.part("w", [2, 1]).is_ok());
    let message = |name, shape| c.part(name, shape).err().unwrap().to_string();
    let shape = message("w", [1, 2]);
    assert!(
        shape.ends_with("model.safetensors: tensor w has shape [2, 1]; config.json makes it [2]"),
        "{shape}"
    );
    assert!(message("i", [1, 1]).contains("model.safetensors: tensor i is stored as I64; float32"));
    assert!(message("x", [1, 1]).contains("has no tensor x"));
}

#[test]
fn load_formats_parse() {
    assert_eq!("pt".parse(), Ok(LoadFormat::Pt));
    assert!("pth".parse::<LoadFormat>().unwrap_err().contains("auto, safetensors, pt, gguf, dummy"));
}

#[test]
fn stories260k_opens() {
    let Some(shared) = shared_dir() else {
        println!("left out: shared/models/stories260k (not there)");
        return;
    };
    let dir = shared.join("models/stories260k");
    let c = Checkpoint::open(&dir, LoadFormat::Auto).unwrap();
    assert_eq!(c.total_bytes(), 4 * 260_032);
    // Its names and shapes are those that random weights of its configuration would have.
    let config = ModelConfig::from_dir(&dir, None).unwrap();
    let mut want: Vec<_> = decoder_tensors(&config).unwrap().into_iter().map(|t| (t.name, t.shape)).collect();
    want.sort();
    let have = c.names().map(|n| (n.to_owned(), c.info(n).unwrap().1.to_vec()));
    assert_eq!(have.collect::<Vec<_>>(), want);
    assert!(c.names().all(|name| c.tensor(name).unwrap().bytes.is_mapped()));
}

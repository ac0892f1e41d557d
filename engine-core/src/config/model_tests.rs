//! `config.json` of each family, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::json;

use super::*;
use crate::config::rope::{LongRope, Yarn};
use crate::loader::testing::{TempDir, shared_dir};

/// A small valid Llama configuration with `changes` laid over it; a null change removes the key.
fn config(changes: Value) -> Result<ModelConfig> {
    let mut base = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "hidden_size": 64,
        "intermediate_size": 172, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "eos_token_id": 2, "torch_dtype": "bfloat16",
    });
    let map = base.as_object_mut().unwrap();
    for (key, value) in changes.as_object().unwrap() {
        map.insert(key.clone(), value.clone());
    }
    ModelConfig::from_json(map.clone())
}

/// The message for `changes`; it must name the file.
fn refusal(changes: Value) -> String {
    let message = config(changes).unwrap_err().to_string();
    assert!(message.starts_with("config.json: "), "{message}");
    message
}

#[test]
fn a_llama_configuration_reads_with_its_defaults() {
    let c = config(json!({})).unwrap();
    assert_eq!((c.head_dim, c.num_key_value_heads, c.num_hidden_layers), (8, 4, 4));
    assert_eq!((c.rope.theta, c.rope.rotary_dim, &c.rope.scaling), (10_000.0, 8, &RopeScaling::None));
    assert_eq!((c.hidden_act, c.dtype, c.tie_word_embeddings), (HiddenAct::Silu, Some(DType::Bf16), false));
    assert_eq!((c.attention_bias, c.mlp_bias, c.quantization_config), (None, false, None));
    assert_eq!((c.layer_windows, c.eos_token_ids), (vec![None; 4], vec![2]));
    let c = config(json!({"num_key_value_heads": null, "eos_token_id": [1, 2], "head_dim": 16})).unwrap();
    assert_eq!((c.num_key_value_heads, c.head_dim, c.eos_token_ids), (8, 16, vec![1, 2]));
    let c = config(json!({"torch_dtype": null, "dtype": "torch.float16", "hidden_size": 64.0})).unwrap();
    assert_eq!((c.dtype, c.hidden_size), (Some(DType::F16), 64));
    assert_eq!(config(json!({"model_type": "qwen3", "head_dim": null})).unwrap().head_dim, 128);
}

#[test]
fn nonsense_is_named_with_what_would_be_right() {
    let cases = [
        (json!({"hidden_size": null}), "hidden_size is missing; a whole number of at least 1"),
        (json!({"hidden_size": 65}), "hidden_size is 65; a multiple of num_attention_heads (8)"),
        (json!({"num_hidden_layers": 0}), "num_hidden_layers is 0; a whole number of at least 1"),
        (json!({"num_hidden_layers": 100_000}), "num_hidden_layers is 100000; a whole number from 1 to 4096"),
        (json!({"num_attention_heads": -8}), "num_attention_heads is -8"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads is 3; a divisor of num_attention_heads (8)"),
        (json!({"num_key_value_heads": 16}), "num_key_value_heads is 16; a divisor"),
        (json!({"vocab_size": "512"}), "vocab_size is \"512\"; a whole number"),
        (json!({"vocab_size": u64::MAX}), "vocab_size is 18446744073709551615"),
        (json!({"intermediate_size": 1.5}), "intermediate_size is 1.5"),
        (json!({"head_dim": 7}), "7 of each head's 7 elements"),
        (json!({"head_dim": 16_000_000}), "8 heads of 16000000 elements"),
        (json!({"partial_rotary_factor": 0.1}), "0 of each head's 8 elements"),
        (json!({"partial_rotary_factor": 2.0}), "an even number from 2 to head_dim"),
        (json!({"rms_norm_eps": 0.0}), "rms_norm_eps is 0.0; a number above 0"),
        (json!({"rms_norm_eps": 1e-50}), "rms_norm_eps is 1e-50"),
        (json!({"rms_norm_eps": "1e-5"}), "rms_norm_eps is \"1e-5\"; a number"),
        (json!({"rope_theta": 0}), "rope_theta is 0; a number above 0"),
        (json!({"hidden_act": "sin"}), "hidden_act is \"sin\"; one of silu"),
        (json!({"torch_dtype": "int3"}), "torch_dtype is \"int3\"; one of float32"),
        (json!({"sliding_window": 0}), "sliding_window is 0"),
        (
            json!({"layer_types": ["full_attention"]}),
            "layer_types names 1 layers, but num_hidden_layers is 4",
        ),
        (json!({"eos_token_id": {"a": 1}}), "eos_token_id is {\"a\":1}; a token id or a list"),
        (
            json!({"architectures": "LlamaForCausalLM"}),
            "architectures is \"LlamaForCausalLM\"; a list of strings",
        ),
        (json!({"quantization_config": "awq"}), "quantization_config is \"awq\"; an object"),
        (json!({"max_position_embeddings": 0}), "max_position_embeddings is 0"),
        (json!({"tie_word_embeddings": "yes"}), "tie_word_embeddings is \"yes\"; true or false"),
    ];
    for (changes, part) in cases {
        let message = refusal(changes.clone());
        assert!(message.contains(part), "{changes}: {message}");
    }
}

#[test]
fn files_that_are_missing_or_no_json_are_named() {
    let dir = TempDir::new("config");
    let text = |content: &[u8]| {
        dir.write("config.json", content);
        ModelConfig::from_dir(dir.path(), None).unwrap_err().to_string()
    };
    assert!(ModelConfig::from_dir(dir.path(), None).unwrap_err().to_string().contains("has no config.json"));
    assert!(text(b"{\"hidden_size\": ").contains("is no valid JSON: EOF"));
    assert!(text(b"{\"rms_norm_eps\": NaN}").contains("NaN and Infinity are no JSON numbers"));
    assert!(text(b"[]").contains("a JSON object is wanted"));
    assert!(text(&[b'['; 100_000]).contains("recursion limit"));
    assert!(text(&[b' '; (16 << 20) + 1]).contains("at most 16777216"));
}

#[test]
fn windows_follow_each_familys_rule() {
    let windows = |changes: Value| config(changes).unwrap().layer_windows;
    assert_eq!(windows(json!({"sliding_window": 256})), vec![None; 4]);
    assert_eq!(windows(json!({"model_type": "mistral", "sliding_window": 256})), vec![Some(256); 4]);
    assert_eq!(windows(json!({"model_type": "mistral", "sliding_window": null})), vec![None; 4]);
    let qwen = |on: bool| {
        windows(json!({"model_type": "qwen2", "sliding_window": 256, "use_sliding_window": on,
                       "max_window_layers": 3}))
    };
    assert_eq!(qwen(false), vec![None; 4]);
    assert_eq!(qwen(true), vec![None, None, None, Some(256)]);
    let kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"];
    let typed = windows(json!({"layer_types": kinds, "sliding_window": 64}));
    assert_eq!(typed, vec![None, Some(64), None, Some(64)]);
    assert!(refusal(json!({"layer_types": kinds})).contains("layer_types[1] is sliding_attention"));
    let odd = ["full_attention", "linear_attention", "full_attention", "full_attention"];
    assert!(refusal(json!({"layer_types": odd})).contains("layer_types[1] is \"linear_attention\""));
}

#[test]
fn rope_scaling_reads_in_all_three_spellings() {
    let scaling = |changes: Value| config(changes).unwrap().rope.scaling;
    assert_eq!(
        scaling(json!({"rope_scaling": {"type": "linear", "factor": 4}})),
        RopeScaling::Linear { factor: 4.0 }
    );
    assert_eq!(
        scaling(json!({"rope_scaling": {"type": "dynamic", "factor": 2.5}})),
        RopeScaling::Dynamic { factor: 2.5, original_max_position: 2048 }
    );
    let llama3 = json!({"rope_type": "llama3", "type": "ignored", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 512});
    assert_eq!(
        scaling(json!({"rope_scaling": llama3})),
        RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position: 512
        }
    );
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "beta_fast": 16, "beta_slow": 2, "mscale": 0.7,
        "mscale_all_dim": 0.8, "attention_factor": 1.5, "truncate": false, "rope_theta": 5e5,
        "original_max_position_embeddings": 1024, "partial_rotary_factor": 0.5});
    let c = config(json!({"rope_parameters": yarn, "rope_theta": 7.0})).unwrap();
    assert_eq!((c.rope.theta, c.rope.rotary_dim), (5e5, 4));
    let full = Yarn {
        factor: 4.0,
        original_max_position: 1024,
        beta_fast: 16.0,
        beta_slow: 2.0,
        attention_factor: Some(1.5),
        mscale: Some(0.7),
        mscale_all_dim: Some(0.8),
        truncate: false,
    };
    assert_eq!(c.rope.scaling, RopeScaling::Yarn(full));
    for name in ["longrope", "su"] {
        let long = json!({"type": name, "short_factor": [1, 1, 1, 1.5], "long_factor": [1, 2, 3, 4]});
        let got = scaling(json!({"rope_scaling": long, "original_max_position_embeddings": 512}));
        let want = LongRope {
            short_factor: vec![1.0, 1.0, 1.0, 1.5],
            long_factor: vec![1.0, 2.0, 3.0, 4.0],
            original_max_position: 512,
            factor: 4.0,
            attention_factor: None,
        };
        assert_eq!(got, RopeScaling::LongRope(want));
    }
    assert_eq!(
        scaling(json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}})),
        RopeScaling::None
    );
}

#[test]
fn wrong_rope_scaling_is_named() {
    let cases = [
        (json!({"type": "cubic", "factor": 2}), "rope_scaling.type is \"cubic\"; one of default, linear"),
        (json!({"rope_type": "linear"}), "rope_scaling.factor is missing; a number above 0"),
        (json!({"rope_type": "linear", "factor": -1}), "rope_scaling.factor is -1"),
        (json!({"factor": 2}), "rope_scaling.rope_type is missing"),
        (
            json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}),
            "more than low_freq_factor (4)",
        ),
        (
            json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}),
            "original_max_position_embeddings is missing",
        ),
        (
            json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1, 1, 1, 1]}),
            "short_factor is [1.0]; a list of 4 numbers",
        ),
        (
            json!({"rope_type": "longrope", "short_factor": [1, 1, 1, 0], "long_factor": []}),
            "a list of numbers above 0",
        ),
        (
            json!({"rope_type": "yarn", "factor": 2, "beta_fast": 0.5}),
            "beta_fast is 0.5; at least beta_slow (1)",
        ),
        (json!("linear"), "rope_scaling is \"linear\"; an object"),
        (
            json!({"full_attention": {"rope_type": "default"}}),
            "rope_scaling.full_attention gives one kind of layer",
        ),
    ];
    for (scaling, part) in cases {
        let message = refusal(json!({"rope_scaling": scaling}));
        assert!(message.contains(part), "{scaling}: {message}");
    }
}

#[test]
fn the_context_length_is_derived_as_vllm_derives_it() {
    let derived = |changes: Value| config(changes).unwrap().max_model_len(None).unwrap();
    assert_eq!(derived(json!({})), 2048);
    assert_eq!(derived(json!({"max_position_embeddings": null, "model_type": "qwen2"})), 32_768);
    assert_eq!(derived(json!({"seq_length": 1000})), 1000);
    assert_eq!(derived(json!({"rope_scaling": {"type": "linear", "factor": 4}})), 8192);
    assert_eq!(derived(json!({"rope_scaling": {"type": "dynamic", "factor": 1.5}})), 3072);
    let yarn = json!({"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 1024});
    assert_eq!(derived(json!({"rope_scaling": yarn})), 4096);
    let llama3 = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
        "original_max_position_embeddings": 512});
    assert_eq!(derived(json!({"rope_scaling": llama3})), 2048);
    assert_eq!(derived(json!({"max_position_embeddings": 4_000_000_000u32})), MAX_MODEL_LEN);

    let c = config(json!({"rope_scaling": {"type": "linear", "factor": 2}})).unwrap();
    assert_eq!(c.max_model_len(Some(4096)).unwrap(), 4096);
    for wrong in [4097, 0] {
        let message = c.max_model_len(Some(wrong)).unwrap_err().to_string();
        let says = |part: &str| message.contains(part);
        assert!(
            says(&format!("--max-model-len {wrong}")) && says("4096") && says("2048 × linear"),
            "{message}"
        );
    }
    let stated = config(json!({"model_max_length": 3000})).unwrap();
    assert_eq!(
        (stated.max_model_len(None).unwrap(), stated.max_model_len(Some(3000)).unwrap()),
        (2048, 3000)
    );
    assert!(stated.max_model_len(Some(3001)).is_err());
}

#[test]
fn overrides_replace_values_and_merge_configs() {
    let mut base = json!({"a": {"x": 1, "y": 2}, "q_config": {"x": 1, "y": 2}, "n": 1});
    let over = json!({"a": {"x": 9}, "q_config": {"x": 9}, "n": null, "new": [1]});
    apply_overrides(base.as_object_mut().unwrap(), over.as_object().unwrap());
    assert_eq!(base, json!({"a": {"x": 9}, "q_config": {"x": 9, "y": 2}, "n": null, "new": [1]}));
}

#[test]
fn rope_overrides_reach_every_spelling() {
    let dir = TempDir::new("overrides");
    let read = |file: Value, over: Value| {
        let mut base = json!({"vocab_size": 8, "hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 8});
        base.as_object_mut().unwrap().extend(file.as_object().unwrap().clone());
        dir.write("config.json", base.to_string().as_bytes());
        ModelConfig::from_dir(dir.path(), over.as_object()).unwrap().rope
    };
    let newest = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}});
    let linear = json!({"type": "linear", "factor": 2});
    let scaled = read(newest.clone(), json!({"rope_scaling": linear}));
    assert_eq!((scaled.theta, scaled.scaling), (5e5, RopeScaling::Linear { factor: 2.0 }));
    assert_eq!(read(newest.clone(), json!({"rope_theta": 7.0})).theta, 7.0);
    let both = read(json!({"rope_theta": 3.0}), newest);
    assert_eq!((both.theta, both.scaling), (5e5, RopeScaling::None));
}

#[test]
fn the_shapes_under_shared_read() {
    let Some(shared) = shared_dir() else {
        println!("left out: shared/models (not there)");
        return;
    };
    let read = |name: &str| ModelConfig::from_dir(&shared.join("models").join(name), None).unwrap();
    let c = read("shapes/llama-1b");
    assert_eq!((c.num_hidden_layers, c.head_dim, c.max_model_len(None).unwrap()), (16, 64, 131_072));
    assert_eq!(c.rope.scaling.name(), "llama3");
    let c = read("shapes/llama-8b-awq");
    assert_eq!(c.quantization_config.unwrap()["quant_method"], "awq");
    assert_eq!(read("shapes/qwen2.5-0.5b").layer_windows, vec![None; 24]);
    assert_eq!(read("shapes/qwen3-30b-a3b").fields().count("num_experts").unwrap(), 128);
    assert_eq!(read("stories260k").head_dim, 8);
}

#[test]
fn any_value_under_any_key_ends_in_an_answer() {
    let keys = [
        "architectures",
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "max_position_embeddings",
        "model_max_length",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "partial_rotary_factor",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
        "initializer_range",
        "torch_dtype",
        "dtype",
        "eos_token_id",
        "pad_token_id",
        "quantization_config",
    ];
    let rope = |name: &str, x: f64| {
        json!({"rope_type": name, "factor": x, "low_freq_factor": 1, "high_freq_factor": x, "rope_theta": x,
            "short_factor": [x], "long_factor": [x], "original_max_position_embeddings": 1})
    };
    let mut values =
        vec![json!(null), json!(-1), json!(0), json!(1), json!(1e308), json!(u64::MAX), json!(0.5)];
    values.extend([
        json!(4_294_967_295u32),
        json!(1e-308),
        json!("x"),
        json!([]),
        json!([[]]),
        json!({}),
        json!(true),
    ]);
    for name in ["linear", "dynamic", "llama3", "yarn", "longrope"] {
        values.extend([1e-300, 2.0, 1e300].map(|x| rope(name, x)));
    }
    let mut good = 0;
    for key in keys {
        for value in &values {
            for family in ["llama", "mistral", "qwen2", "qwen3"] {
                let mut changes = json!({"model_type": family});
                changes.as_object_mut().unwrap().insert(key.to_owned(), value.clone());
                let Ok(c) = config(changes) else { continue };
                good += usize::from(c.max_model_len(None).is_ok());
                assert_eq!(c.layer_windows.len(), c.num_hidden_layers as usize);
                assert!(c.head_dim >= c.rope.rotary_dim && c.num_attention_heads >= c.num_key_value_heads);
            }
        }
    }
    assert!(good > 100, "only {good} were accepted");
}

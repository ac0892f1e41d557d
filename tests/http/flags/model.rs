//! Which model is served, and the numbers that come with it.

use serde_json::{Value, json};

use crate::effects;
use crate::harness::{TempDir, complete, get, post, ready};
use crate::process::{Server, bundled_model, run};

/// The first card of /v1/models.
fn card(words: &[&str]) -> Value {
    get(&Server::start(words), "/v1/models").json()["data"][0].clone()
}

/// Tokens of a greedy answer that nothing else ends.
fn answer_tokens(words: &[&str]) -> u64 {
    let body = json!({"prompt": "Once", "max_tokens": 6, "temperature": 0, "ignore_eos": true});
    complete(&Server::start(words), &body).json()["usage"]["completion_tokens"].as_u64().unwrap()
}

effects! {
    "model" fn model() {
        let dir = bundled_model();
        let dir = dir.to_str().unwrap();
        assert_eq!(card(&["--model", dir])["root"], dir);
        assert_eq!(card(&[dir])["root"], dir);
        assert_eq!(card(&[])["root"], "pallium-demo");
    }
    "served-model-name" fn names() {
        let server = Server::start(&["--served-model-name", "first", "second"]);
        for (name, status) in [("first", 200), ("second", 200), ("pallium-demo", 404)] {
            let body = json!({"prompt": "Once", "max_tokens": 1, "model": name});
            let reply = complete(&server, &body);
            assert_eq!(reply.status, status, "{name}");
            assert!(status == 404 || reply.json()["model"] == "first");
        }
    }
    "tokenizer" fn tokenizer() {
        // The same tokenizer without the template that lies beside the model's.
        let dir = TempDir::new("tokenizer");
        let tokenizer = dir.copy("tokenizer", &["tokenizer.json"]);
        let server = Server::start(&["--tokenizer", &tokenizer]);
        let body = json!({"messages": [{"role": "user", "content": "Hello"}]});
        let reply = post(&server, "/v1/chat/completions", &body);
        assert!(reply.status == 400 && reply.body.contains("no chat template"), "{reply:?}");
    }
    "hf-config-path" fn config_path() {
        let dir = TempDir::new("config");
        let text = std::fs::read_to_string(bundled_model().join("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config["max_position_embeddings"] = json!(512);
        dir.write("config.json", &config.to_string());
        assert_eq!(card(&["--hf-config-path", &dir.path("")])["max_model_len"], 512);
    }
    "hf-overrides" fn overrides() {
        assert_eq!(card(&["--hf-overrides.max_position_embeddings", "256"])["max_model_len"], 256);
    }
    "quantization" fn quantization() {
        let bytes = |words: &[&str]| ready(words)["weight_bytes"].as_u64().unwrap();
        let plain = bytes(&["--dtype", "bfloat16"]);
        let halved = bytes(&["--dtype", "bfloat16", "--quantization", "q8_0"]);
        assert!(halved * 3 < plain * 2, "{halved} of {plain}");
        assert_eq!(answer_tokens(&["--quantization", "q8_0"]), 6);
    }
    "dtype" fn dtype() {
        let bytes = |dtype| ready(&["--dtype", dtype])["weight_bytes"].as_u64().unwrap();
        assert_eq!(ready(&["--dtype", "float32"])["dtype"], "float32");
        assert!(bytes("float32") > bytes("bfloat16") * 3 / 2);
    }
    "max-model-len" fn max_model_len() {
        let server = Server::start(&["--max-model-len", "64"]);
        assert_eq!(get(&server, "/v1/models").json()["data"][0]["max_model_len"], 64);
        let reply = complete(&server, &json!({"prompt": vec![5; 65]}));
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("input_tokens")));
    }
    "seed" fn seed() {
        let drawn = |seed: &str| {
            let body = json!({"prompt": "Once upon a time", "max_tokens": 12, "temperature": 1.5});
            complete(&Server::start(&["--seed", seed]), &body).text()
        };
        let first = drawn("7");
        assert_eq!(drawn("7"), first);
        assert_ne!(drawn("8"), first);
    }
    "max-logprobs" fn max_logprobs() {
        let body = json!({"prompt": "Once", "max_tokens": 1, "logprobs": 3});
        for (most, status) in [("2", 400), ("3", 200), ("-1", 200)] {
            assert_eq!(complete(&Server::start(&["--max-logprobs", most]), &body).status, status, "{most}");
        }
    }
    "logprobs-mode" fn logprobs_mode() {
        // There is one mode; its value holds and the others are refused.
        let body = json!({"prompt": "Once", "max_tokens": 1, "logprobs": 0, "temperature": 0, "logit_bias": {"9": 50}});
        let server = Server::start(&["--logprobs-mode", "raw_logprobs"]);
        let biased = complete(&server, &body).json()["choices"][0]["logprobs"]["token_logprobs"][0].clone();
        assert!(biased.as_f64().unwrap() < -1.0, "before the bias: {biased}");
        let (code, said) = run(&["serve", "--logprobs-mode", "processed_logprobs"]);
        assert!(code == Some(2) && said.contains("raw_logprobs"), "{said}");
    }
    "generation-config" fn generation_config() {
        let dir = TempDir::new("generation");
        dir.write("generation_config.json", "{\"max_new_tokens\": 2}");
        assert_eq!(answer_tokens(&["--generation-config", &dir.path("")]), 2);
        assert_eq!(answer_tokens(&["--generation-config", "vllm"]), 6);
    }
    "override-generation-config" fn overridden_generation() {
        assert_eq!(answer_tokens(&["--override-generation-config.max_new_tokens", "3"]), 3);
    }
    "load-format" fn load_format() {
        let body = json!({"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0});
        let dir = bundled_model();
        let dir = dir.to_str().unwrap();
        let text = |format| complete(&Server::start(&[dir, "--load-format", format]), &body).text();
        assert_eq!(text("safetensors"), text("auto"));
        assert_ne!(text("dummy"), text("auto"));
        let (code, said) = run(&["serve", dir, "--load-format", "pt", "--port", "0"]);
        assert!(code == Some(1) && said.contains("pytorch_model"), "{said}");
    }
}

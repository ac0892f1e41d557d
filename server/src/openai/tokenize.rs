//! `POST /tokenize` and `POST /detokenize`.

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response, StatusCode};
use axum::response::IntoResponse;
use serde_json::json;

use super::conversation::Conversation;
use super::fields::{Fields, read_body};
use super::prompt::{Encoding, Prompt, encode_all};
use super::request::check_model;
use super::sampling::in_vocabulary;
use crate::http::AppState;
use crate::http::error::{ApiError, json_response};
use crate::http::limits::INLINE_TEXT_BYTES;
use crate::text::detokenize::DecodeOptions;

/// Text or a conversation to ids.
pub async fn tokenize(State(state): State<AppState>, request: Request<Body>) -> Response<Body> {
    to_ids(state, request).await.unwrap_or_else(IntoResponse::into_response)
}

/// Ids to text.
pub async fn detokenize(State(state): State<AppState>, request: Request<Body>) -> Response<Body> {
    to_text(state, request).await.unwrap_or_else(IntoResponse::into_response)
}

async fn to_ids(state: AppState, request: Request<Body>) -> Result<Response<Body>, ApiError> {
    let body = read_body(request, state.options.max_body_bytes).await?;
    let mut f = Fields::parse(&body)?;
    let model = f.text("model");
    let with_strings = f.flag("return_token_strs").unwrap_or(false);
    let (text, add_special_tokens) = if f.has("messages") {
        let conversation = Conversation::read(&mut f, body.len(), &state);
        f.check()?;
        check_model(model.as_deref(), &state)?;
        let add = conversation.add_special_tokens;
        (conversation.render(&state).await?, add)
    } else {
        let prompt = f.text("prompt");
        let add = f.flag("add_special_tokens").unwrap_or(true);
        if prompt.is_none() {
            f.reject("prompt", "field required (or `messages`)");
        }
        f.check()?;
        check_model(model.as_deref(), &state)?;
        (prompt.unwrap_or_default(), add)
    };
    let info = state.engine.info();
    let encoding = Encoding { add_special_tokens, truncation: None };
    let ids = match text.is_empty() {
        true => Vec::new(),
        false => encode_all(vec![Prompt::Text(text)], encoding, &state.codec, info).await?[0].to_vec(),
    };
    let strings: Option<Vec<String>> =
        with_strings.then(|| ids.iter().map(|id| state.codec.token(*id).unwrap_or_default()).collect());
    let answer = json!({
        "count": ids.len(),
        "max_model_len": info.max_model_len,
        "tokens": ids,
        "token_strs": strings,
    });
    Ok(json_response(StatusCode::OK, answer.to_string()))
}

async fn to_text(state: AppState, request: Request<Body>) -> Result<Response<Body>, ApiError> {
    let body = read_body(request, state.options.max_body_bytes).await?;
    let mut f = Fields::parse(&body)?;
    let model = f.text("model");
    let tokens = f.ints("tokens");
    if tokens.is_none() {
        f.reject("tokens", "field required");
    }
    f.check()?;
    check_model(model.as_deref(), &state)?;
    let ids = in_vocabulary("tokens", &tokens.unwrap_or_default(), state.engine.info())?;
    let codec = state.codec.clone();
    let options = DecodeOptions { skip_special_tokens: false, ..DecodeOptions::default() };
    let decode = move || codec.decode(&ids, options);
    let text = if body.len() <= INLINE_TEXT_BYTES {
        decode()
    } else {
        tokio::task::spawn_blocking(decode).await.map_err(|_| ApiError::internal("The tokenizer failed."))?
    };
    Ok(json_response(StatusCode::OK, json!({ "prompt": text }).to_string()))
}

//! `GET /v1/models` and `GET /v1/models/{name}`.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use crate::http::AppState;
use crate::http::error::{ApiError, json_response};

/// Every served name.
pub async fn list(State(state): State<AppState>) -> Response<Body> {
    let names = &state.engine.info().model_names;
    let data: Vec<Value> = names.iter().map(|name| card(name, &state)).collect();
    json_response(StatusCode::OK, json!({ "object": "list", "data": data }).to_string())
}

/// One served name.
pub async fn one(State(state): State<AppState>, Path(name): Path<String>) -> Response<Body> {
    if state.engine.info().model_names.contains(&name) {
        return json_response(StatusCode::OK, card(&name, &state).to_string());
    }
    ApiError::unknown_model(&name).into_response()
}

fn card(name: &str, state: &AppState) -> Value {
    let info = state.engine.info();
    let created = state.started_unix_s;
    json!({
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "pallium",
        "root": info.model_root,
        "parent": null,
        "max_model_len": info.max_model_len,
        "permission": [{
            "id": format!("modelperm-{name}"),
            "object": "model_permission",
            "created": created,
            "allow_create_engine": false,
            "allow_sampling": true,
            "allow_logprobs": true,
            "allow_search_indices": false,
            "allow_view": true,
            "allow_fine_tuning": false,
            "organization": "*",
            "group": null,
            "is_blocking": false
        }]
    })
}

//! The hub's client against a local server that plays the hub.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::fake_hub::{Behaviour, COMMIT, FakeHub, sha256};
use super::*;

/// A hub, and a cache of its own.
struct Rig {
    hub: FakeHub,
    config: HubConfig,
    home: PathBuf,
}

impl Rig {
    fn new(behaviour: Behaviour) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let home = std::env::temp_dir().join(format!("pallium-hub-{}-{n}", std::process::id()));
        let hub = FakeHub::start(behaviour);
        let variables =
            [("HF_ENDPOINT", format!("{}/", hub.endpoint())), ("HF_HOME", home.display().to_string())];
        let lookup = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone());
        let mut config = HubConfig::from_lookup(&lookup);
        config.retry_pause = Duration::from_millis(1);
        Rig { hub, config, home }
    }
    fn resolve(&self) -> Result<Resolved> {
        resolve(&request("org/tiny"), &self.config, &|_| ())
    }
    fn refusal(&self) -> String {
        self.resolve().unwrap_err().to_string()
    }
    fn blob(&self, bytes: &[u8]) -> PathBuf {
        self.home.join("hub/models--org--tiny/blobs").join(sha256(bytes))
    }
    /// Paths asked of the storage, with their ranges.
    fn storage_requests(&self) -> Vec<Option<String>> {
        self.hub.seen().into_iter().filter(|s| s.storage).map(|s| s.range).collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

fn request(model: &str) -> Request<'_> {
    Request { model, revision: None, format: LoadFormat::Auto }
}

fn weights() -> Vec<u8> {
    (0..300_000u32).map(|i| (i * 7 % 251) as u8).collect()
}

fn tiny() -> Behaviour {
    let files = [
        ("README.md", b"# tiny".to_vec()),
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{\"a\": 1}".to_vec()),
        ("model.safetensors", weights()),
        ("consolidated.safetensors", b"no".to_vec()),
        ("original/params.json", b"no".to_vec()),
        ("pytorch_model.bin", b"no".to_vec()),
    ];
    Behaviour { files: files.into_iter().map(|(p, b)| (p.to_owned(), b)).collect(), ..Behaviour::default() }
}

#[test]
fn a_model_is_downloaded_once_and_then_found_without_the_network() {
    let rig = Rig::new(tiny());
    let events = Mutex::new(Vec::new());
    let note = |e: Event<'_>| events.lock().unwrap().push(format!("{e:?}"));
    let first = resolve(&request("org/tiny"), &rig.config, &note).unwrap();
    assert_eq!((first.origin, first.commit.as_deref()), (Origin::Download, Some(COMMIT)));
    assert_eq!(std::fs::read(first.dir.join("model.safetensors")).unwrap(), weights());
    assert_eq!(std::fs::read(first.dir.join("config.json")).unwrap(), b"{}");
    for absent in ["README.md", "consolidated.safetensors", "original", "pytorch_model.bin"] {
        assert!(!first.dir.join(absent).exists(), "{absent}");
    }
    let folder = rig.home.join("hub/models--org--tiny");
    assert_eq!(std::fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(first.dir, folder.join("snapshots").join(COMMIT));
    if cfg!(unix) {
        let link = std::fs::read_link(first.dir.join("model.safetensors")).unwrap();
        assert_eq!(link, Path::new(&format!("../../blobs/{}", sha256(&weights()))));
    }
    let events = events.into_inner().unwrap();
    let planned = format!("Planned {{ files: 3, total_bytes: {}, resumed_bytes: 0 }}", 300_000 + 2 + 8);
    assert_eq!(events[0], planned);
    assert_eq!(events.last().unwrap(), "FileDone { path: \"model.safetensors\" }");

    rig.hub.seen();
    let again = rig.resolve().unwrap();
    assert_eq!((again.origin, again.dir), (Origin::Cache, first.dir));
    assert_eq!(rig.hub.seen(), []);
    let by_commit = Request { revision: Some(COMMIT), ..request("org/tiny") };
    assert_eq!(resolve(&by_commit, &rig.config, &|_| ()).unwrap().origin, Origin::Cache);
    // A pull asks again, and finds nothing to fetch.
    pull(&request("org/tiny"), &[], &rig.config, &|_| ()).unwrap();
    assert!(rig.hub.seen().iter().all(|s| s.path.starts_with("/api/")));
}

#[test]
fn a_cut_connection_resumes_where_it_stopped() {
    let rig = Rig::new(Behaviour { cuts: (90_000, 3), ..tiny() });
    let retries = AtomicU32::new(0);
    let count = |e: Event<'_>| {
        if let Event::Retry { path, .. } = e {
            assert_eq!(path, "model.safetensors");
            retries.fetch_add(1, Ordering::Relaxed);
        }
    };
    let found = resolve(&request("org/tiny"), &rig.config, &count).unwrap();
    assert_eq!(std::fs::read(found.dir.join("model.safetensors")).unwrap(), weights());
    let ranges: Vec<_> = rig.storage_requests();
    let from = |n: u32| Some(format!("bytes={n}-"));
    assert_eq!(ranges, [None, from(90_000), from(180_000), from(270_000)]);
    assert_eq!(retries.into_inner(), 3);
}

#[test]
fn an_interrupted_download_is_kept_for_the_next_run() {
    let rig = Rig::new(Behaviour { cuts: (0, 100), ..tiny() });
    let message = rig.refusal();
    assert!(message.contains("model.safetensors stopped at 0 of 300000 bytes"), "{message}");
    let partial = rig.blob(&weights()).with_extension("incomplete");
    std::fs::write(&partial, &weights()[..123_456]).unwrap();
    rig.hub.change(|b| b.cuts = (0, 0));
    rig.hub.seen();
    let planned = Mutex::new(None);
    let note = |e: Event<'_>| {
        if let Event::Planned { files, total_bytes, resumed_bytes } = e {
            *planned.lock().unwrap() = Some((files, total_bytes, resumed_bytes));
        }
    };
    let found = resolve(&request("org/tiny"), &rig.config, &note).unwrap();
    assert_eq!(std::fs::read(found.dir.join("model.safetensors")).unwrap(), weights());
    assert_eq!(rig.storage_requests(), [Some("bytes=123456-".to_owned())]);
    assert_eq!(planned.into_inner().unwrap(), Some((1, 300_000, 123_456)));
    assert!(!partial.exists());
}

#[test]
fn a_whole_partial_file_needs_no_request_and_a_longer_one_is_dropped() {
    for (left, requests) in [(weights(), 0), ([weights(), weights()].concat(), 1)] {
        let rig = Rig::new(tiny());
        let blob = rig.blob(&weights());
        std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
        std::fs::write(blob.with_extension("incomplete"), left).unwrap();
        let found = rig.resolve().unwrap();
        assert_eq!(std::fs::read(found.dir.join("model.safetensors")).unwrap(), weights());
        assert_eq!(rig.storage_requests().len(), requests);
    }
}

#[test]
fn a_server_without_ranges_starts_over() {
    let rig = Rig::new(Behaviour { no_ranges: true, cuts: (100_000, 1), ..tiny() });
    let found = rig.resolve().unwrap();
    assert_eq!(std::fs::read(found.dir.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn damaged_bytes_are_fetched_once_more_and_never_get_a_name() {
    let rig = Rig::new(Behaviour { corruptions: 1, ..tiny() });
    let found = rig.resolve().unwrap();
    assert_eq!(std::fs::read(found.dir.join("model.safetensors")).unwrap(), weights());

    let rig = Rig::new(Behaviour { corruptions: 100, ..tiny() });
    let message = rig.refusal();
    assert!(message.contains("model.safetensors arrived damaged: its sha256 is"), "{message}");
    let blob = rig.blob(&weights());
    assert!(!blob.exists() && !blob.with_extension("incomplete").exists());
    assert!(
        !rig.home.join("hub/models--org--tiny/snapshots").join(COMMIT).join("model.safetensors").exists()
    );

    let rig = Rig::new(Behaviour { surplus: 5, ..tiny() });
    assert!(rig.refusal().contains("longer than the 300000 bytes announced"));
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_the_storage() {
    let mut rig = Rig::new(Behaviour { guard: Some(("hf_good", 401, "GatedRepo")), ..tiny() });
    let message = rig.refusal();
    assert!(
        message.contains("answered 401") && message.contains("gated") && message.contains("set HF_TOKEN")
    );
    rig.config.token = Some("hf_bad".to_owned());
    assert!(rig.refusal().contains("with the account of HF_TOKEN"));
    rig.hub.change(|b| b.guard = Some(("hf_good", 403, "")));
    assert!(rig.refusal().contains("answered 403: it does not exist, or the account of HF_TOKEN"));
    rig.config.token = Some("hf_good".to_owned());
    rig.hub.seen();
    rig.resolve().unwrap();
    for seen in rig.hub.seen() {
        assert_eq!(seen.authorization.is_some(), !seen.storage, "{seen:?}");
    }
    assert!(!format!("{:?}", rig.config).contains("hf_good"));
}

#[test]
fn what_is_not_there_is_named() {
    let rig = Rig::new(tiny());
    let fail = |request: Request<'_>| resolve(&request, &rig.config, &|_| ()).unwrap_err().to_string();
    let message = fail(request("org/other"));
    assert!(message.contains("org/other has no repository at revision main"), "{message}");
    let message = fail(Request { revision: Some("v9"), ..request("org/tiny") });
    assert!(message.contains("org/tiny has no such revision at revision v9"), "{message}");
    for bad in ["/no/such/dir", "a/b/c", "../x", "org/na me", "org/..", "", ".hidden"] {
        assert!(fail(request(bad)).contains("neither a directory nor a hub id"), "{bad}");
    }
    let message = fail(Request { revision: Some("../x"), ..request("org/tiny") });
    assert!(message.contains("revision \"../x\" is no name"), "{message}");
}

#[test]
fn repositories_without_a_model_are_refused() {
    let rig = Rig::new(tiny());
    rig.hub.change(|b| drop(b.files.remove("config.json")));
    assert!(rig.refusal().contains("no config.json"));
    rig.hub.change(|b| {
        b.files = [("config.json".to_owned(), b"{}".to_vec()), ("m.gguf".to_owned(), vec![])].into();
    });
    assert!(rig.refusal().contains("no weights for --load-format auto"));
    let dummy = Request { format: LoadFormat::Dummy, ..request("org/tiny") };
    assert!(resolve(&dummy, &rig.config, &|_| ()).is_ok());
}

#[test]
fn listings_that_reach_out_of_the_cache_are_refused() {
    let rig = Rig::new(tiny());
    let answer = |text: String| {
        rig.hub.change(|b| b.listing = Some(text));
        rig.refusal()
    };
    let evil = serde_json::json!({"sha": COMMIT, "siblings": [{"rfilename": "../../evil.json"}]});
    assert!(answer(evil.to_string()).contains("a file is called \"../../evil.json\""));
    let evil = serde_json::json!({"sha": "../../x", "siblings": []});
    assert!(answer(evil.to_string()).contains("at commit \"../../x\""));
    assert!(answer("<html>".to_owned()).contains("no listing: expected value"));
}

#[test]
fn offline_uses_the_cache_and_says_what_it_lacks() {
    let mut rig = Rig::new(tiny());
    rig.config.offline = true;
    let message = rig.refusal();
    assert!(message.contains("HF_HUB_OFFLINE is set, and it is not in the cache"), "{message}");
    rig.config.offline = false;
    let dir = rig.resolve().unwrap().dir;
    rig.config.offline = true;
    rig.hub.seen();
    assert_eq!(rig.resolve().unwrap().origin, Origin::Cache);
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    let message = rig.refusal();
    assert!(
        message.contains("snapshot in the cache is not whole") && message.contains("no weights"),
        "{message}"
    );
    let message = pull(&request("org/tiny"), &[], &rig.config, &|_| ()).unwrap_err().to_string();
    assert!(message.contains("a pull needs the network"), "{message}");
    assert_eq!(rig.hub.seen(), []);
}

#[test]
fn a_snapshot_that_is_not_whole_is_completed() {
    let rig = Rig::new(tiny());
    let dir = rig.resolve().unwrap().dir;
    std::fs::remove_file(dir.join("tokenizer.json")).unwrap();
    rig.hub.seen();
    assert_eq!(rig.resolve().unwrap().origin, Origin::Download);
    assert!(dir.join("tokenizer.json").is_file());
    assert_eq!(rig.storage_requests().len(), 0);
}

#[test]
fn a_busy_hub_is_asked_again_and_a_dead_one_is_named() {
    let rig = Rig::new(Behaviour { busy: 3, ..tiny() });
    rig.resolve().unwrap();
    let mut rig = Rig::new(Behaviour { busy: 1000, ..tiny() });
    assert!(rig.refusal().contains("the server answered 503"));
    // A port that nothing listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    rig.config.endpoint = format!("http://127.0.0.1:{port}");
    let message = rig.refusal();
    assert!(message.contains(&port.to_string()), "{message}");
}

#[test]
fn a_silent_server_is_given_up() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut rig = Rig::new(tiny());
    rig.config.endpoint = format!("http://{}", silent.local_addr().unwrap());
    rig.config.read_timeout = Duration::from_millis(20);
    assert!(rig.refusal().to_lowercase().contains("timeout"), "{}", rig.refusal());
}

#[test]
fn includes_choose_files_by_glob() {
    let rig = Rig::new(tiny());
    let include = ["*.md".to_owned(), "original/*".to_owned()];
    let dir = pull(&request("org/tiny"), &include, &rig.config, &|_| ()).unwrap().dir;
    assert!(dir.join("README.md").is_file() && dir.join("original/params.json").is_file());
    assert!(!dir.join("config.json").exists());
    let none = pull(&request("org/tiny"), &["*.gguf".to_owned()], &rig.config, &|_| ());
    assert!(none.unwrap_err().to_string().contains("matches --include *.gguf"));
}

#[test]
fn two_at_once_download_each_file_once() {
    let rig = Rig::new(tiny());
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3).map(|_| scope.spawn(|| rig.resolve().unwrap())).collect();
        runs.into_iter().for_each(|run| drop(run.join().unwrap()));
    });
    assert_eq!(rig.storage_requests(), [None]);
}

#[test]
fn a_local_directory_is_taken_as_it_is() {
    let rig = Rig::new(tiny());
    std::fs::create_dir_all(rig.home.join("model")).unwrap();
    let path = rig.home.join("model").display().to_string();
    let found = resolve(&request(&path), &rig.config, &|_| ()).unwrap();
    assert_eq!(found, Resolved { dir: PathBuf::from(&path), origin: Origin::LocalDirectory, commit: None });
    let file = rig.home.join("model/x.gguf");
    std::fs::write(&file, b"").unwrap();
    let message =
        resolve(&request(&file.display().to_string()), &rig.config, &|_| ()).unwrap_err().to_string();
    assert!(message.contains("is a file"), "{message}");
    let message = pull(&request(&path), &[], &rig.config, &|_| ()).unwrap_err().to_string();
    assert!(message.contains("is a local directory"), "{message}");
}

#[test]
fn the_environment_is_read_as_the_hubs_own_client_reads_it() {
    let config = |pairs: &[(&str, &str)]| {
        let get = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        HubConfig::from_lookup(&get)
    };
    let c = config(&[("HOME", "/u")]);
    assert_eq!(c.cache, Path::new("/u/.cache/huggingface/hub"));
    assert_eq!((c.endpoint.as_str(), c.offline, c.token), (config::DEFAULT_ENDPOINT, false, None));
    assert_eq!(config(&[("XDG_CACHE_HOME", "/x")]).cache, Path::new("/x/huggingface/hub"));
    assert_eq!(config(&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).cache, Path::new("/h/hub"));
    assert_eq!(config(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]).cache, Path::new("/c"));
    assert!(config(&[("HF_HUB_OFFLINE", "1")]).offline && config(&[("HF_HUB_OFFLINE", "Yes")]).offline);
    assert!(!config(&[("HF_HUB_OFFLINE", "0")]).offline && !config(&[("HF_HUB_OFFLINE", "")]).offline);
    assert_eq!(config(&[("HF_TOKEN", " hf_x\n")]).token.as_deref(), Some("hf_x"));
    assert_eq!(config(&[("HF_TOKEN", "bad token")]).token, None);
    let home = std::env::temp_dir().join(format!("pallium-hub-token-{}", std::process::id()));
    std::fs::create_dir_all(&home).unwrap();
    std::fs::write(home.join("token"), "hf_file\n").unwrap();
    let home_text = home.display().to_string();
    assert_eq!(config(&[("HF_HOME", &home_text)]).token.as_deref(), Some("hf_file"));
    assert_eq!(config(&[("HF_HOME", &home_text), ("HF_TOKEN", "hf_x")]).token.as_deref(), Some("hf_x"));
    std::fs::remove_dir_all(home).unwrap();
}

#[test]
fn a_file_of_authorities_has_to_be_one() {
    let mut rig = Rig::new(tiny());
    rig.config.ca_file = Some(rig.home.join("ca.pem"));
    assert!(rig.refusal().contains("ca.pem"));
    std::fs::create_dir_all(&rig.home).unwrap();
    std::fs::write(rig.home.join("ca.pem"), "no certificate").unwrap();
    assert!(rig.refusal().contains("ca.pem: holds no certificate"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_said_to_be_full() {
    // /dev/full refuses every write as a full disk does.
    let rig = Rig::new(tiny());
    let partial = rig.blob(&weights()).with_extension("incomplete");
    std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
    let message = rig.refusal();
    assert!(message.contains("the disk is full (300000 bytes are still to come)"), "{message}");
}

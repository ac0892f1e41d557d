//! `pallium doctor`: what this machine has, what each backend of this build found or why not, where models are
//! kept, and what would fit.

mod fit;
mod machine;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use engine_core::backend::{DeviceInfo, MemInfo};
use serde_json::{Value, json};

use self::fit::{Fit, Subject};
use self::machine::Machine;
use crate::cli::startup::human_size;
use crate::cli::{DeviceChoice, DeviceKind, DoctorArgs};
use crate::device::{self, DeviceOptions};
use crate::hub::HubConfig;
use crate::model::{StartError, hub_config};

/// Prints the report. Success when at least one device runs here.
///
/// # Errors
/// A MODEL that cannot be found or read, or standard output that cannot be written.
pub fn run(args: &DoctorArgs) -> Result<ExitCode, StartError> {
    super::refuse_null(&args.engine)?;
    let devices = devices(DeviceOptions::of(&args.engine));
    let chosen = chosen(&args.engine.device, &devices);
    let fits = match chosen {
        Some((info, memory)) => {
            let subjects = Subject::of(args)?;
            subjects.iter().map(|s| Fit::new(s, &args.engine, info, memory)).collect()
        }
        None => Vec::new(),
    };
    let report = Report {
        machine: Machine::read(),
        device: chosen.map(|(info, _)| info.id.clone()),
        devices,
        hub: Hub::new(&hub_config(&args.engine)),
        fits,
    };
    let text = if args.json { format!("{:#}\n", report.json()) } else { report.text() };
    std::io::stdout().write_all(text.as_bytes())?;
    let runs = report.devices.iter().any(|d| d.found.is_ok());
    Ok(if runs { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One backend and what it found, or why it found nothing.
struct Device {
    kind: DeviceKind,
    found: Result<(DeviceInfo, MemInfo), String>,
}

/// In the order in which `--device auto` tries them.
fn devices(options: DeviceOptions) -> Vec<Device> {
    let kinds = [DeviceKind::Cuda, DeviceKind::Rocm, DeviceKind::Wgpu, DeviceKind::Cpu];
    let look = |kind| {
        let opened = device::open(DeviceChoice { kind, index: None }, options);
        let found = opened.and_then(|backend| Ok((backend.info().clone(), backend.memory()?)));
        Device { kind, found: found.map_err(|e| e.to_string()) }
    };
    kinds.map(look).into()
}

/// The device that `--device` means.
fn chosen<'a>(choice: &DeviceChoice, devices: &'a [Device]) -> Option<(&'a DeviceInfo, MemInfo)> {
    let wanted = |d: &&Device| choice.kind == DeviceKind::Auto || choice.kind == d.kind;
    let found = devices.iter().filter(wanted).find_map(|d| d.found.as_ref().ok())?;
    Some((&found.0, found.1))
}

/// Where downloaded models are kept.
struct Hub {
    endpoint: String,
    cache: PathBuf,
    offline: bool,
    has_token: bool,
    models: Option<usize>,
    free_bytes: Option<u64>,
}

impl Hub {
    fn new(config: &HubConfig) -> Self {
        Hub {
            endpoint: config.endpoint.clone(),
            cache: config.cache.clone(),
            offline: config.offline,
            has_token: config.token.is_some(),
            models: std::fs::read_dir(&config.cache).ok().map(|entries| {
                let is_model = |name: &str| name.starts_with("models--");
                entries.flatten().filter(|e| e.file_name().to_str().is_some_and(is_model)).count()
            }),
            free_bytes: free_disk_bytes(&config.cache),
        }
    }
}

/// Room on the disk of this directory, or of the nearest one above it that exists.
fn free_disk_bytes(dir: &Path) -> Option<u64> {
    let there = dir.ancestors().find(|d| d.is_dir())?;
    let disk = rustix::fs::statvfs(there).ok()?;
    Some(disk.f_bavail * disk.f_frsize)
}

struct Report {
    machine: Machine,
    /// Id of the device that MODEL would run on.
    device: Option<String>,
    devices: Vec<Device>,
    hub: Hub,
    fits: Vec<Fit>,
}

impl Report {
    fn text(&self) -> String {
        let mut text = format!("pallium {}\n", env!("CARGO_PKG_VERSION"));
        section(&mut text, "Machine", &self.machine.rows());
        section(&mut text, "Devices", &self.devices.iter().map(Device::row).collect::<Vec<_>>());
        section(&mut text, "Models", &self.hub.rows());
        if let Some(device) = &self.device {
            text.push_str(&format!("\nWhat fits on {device}, all of its memory given to one model\n"));
            text.push_str(&fit::table(&self.fits));
        }
        text
    }

    fn json(&self) -> Value {
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "machine": self.machine.json(),
            "device": self.device,
            "devices": self.devices.iter().map(Device::json).collect::<Vec<_>>(),
            "hub": {
                "endpoint": self.hub.endpoint,
                "cache": self.hub.cache,
                "offline": self.hub.offline,
                "has_token": self.hub.has_token,
                "models": self.hub.models,
                "free_bytes": self.hub.free_bytes,
            },
            "models": self.fits.iter().map(Fit::json).collect::<Vec<_>>(),
        })
    }
}

/// A heading and its rows, names in one column.
fn section(text: &mut String, heading: &str, rows: &[(String, String)]) {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    text.push_str(&format!("\n{heading}\n"));
    for (name, value) in rows {
        text.push_str(&format!("  {name:<width$}  {value}\n"));
    }
}

impl Device {
    fn row(&self) -> (String, String) {
        let value = match &self.found {
            Ok((info, memory)) => format!(
                "{}, {}, {} threads or units; {} free of {}",
                info.name,
                info.arch,
                info.units,
                human_size(memory.free_bytes),
                human_size(memory.total_bytes)
            ),
            Err(reason) => reason.clone(),
        };
        (self.kind.name().to_owned(), value)
    }

    fn json(&self) -> Value {
        match &self.found {
            Ok((info, memory)) => json!({
                "kind": self.kind.name(),
                "runs": true,
                "name": info.name,
                "arch": info.arch,
                "units": info.units,
                "dtypes": info.dtypes.iter().map(|d| d.name()).collect::<Vec<_>>(),
                "total_bytes": memory.total_bytes,
                "free_bytes": memory.free_bytes,
            }),
            Err(reason) => json!({"kind": self.kind.name(), "runs": false, "reason": reason}),
        }
    }
}

impl Hub {
    fn rows(&self) -> Vec<(String, String)> {
        let models = match self.models {
            Some(count) => format!("{count} models"),
            None => "not there yet".to_owned(),
        };
        let free = self.free_bytes.map_or(String::new(), |b| format!(", {} free on its disk", human_size(b)));
        let access = [(self.offline, "offline"), (self.has_token, "with a token")];
        let access: String = access.iter().filter(|a| a.0).map(|a| format!(", {}", a.1)).collect();
        vec![
            ("cache".to_owned(), format!("{}: {models}{free}", self.cache.display())),
            ("hub".to_owned(), format!("{}{access}", self.endpoint)),
        ]
    }
}

//! NVIDIA's GPUs by its own library, which is loaded where it is there and never needed.
//!
//! A handful of calls of a stable C interface (nvml.h): no crate, no header, nothing to link.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    time::Duration,
};

use muster_core::record::Gpu;
use nix::libc;
use tracing::warn;

/// As the driver's packages install it; the loader looks where it always looks.
const LIBRARY: &CStr = c"libnvidia-ml.so.1";
/// nvml.h: NVML_DEVICE_NAME_V2_BUFFER_SIZE and NVML_DEVICE_UUID_V2_BUFFER_SIZE.
const TEXT: usize = 96;
/// No machine has more; what a broken library says is not believed past it.
const GPUS_MAX: c_uint = 256;
/// A driver that hangs must not keep the agent from starting.
const LIMIT: Duration = Duration::from_secs(10);

type Device = *mut c_void;
type Init = unsafe extern "C" fn() -> c_int;
type Count = unsafe extern "C" fn(*mut c_uint) -> c_int;
type ByIndex = unsafe extern "C" fn(c_uint, *mut Device) -> c_int;
type Text = unsafe extern "C" fn(Device, *mut c_char, c_uint) -> c_int;
type MemoryInfo = unsafe extern "C" fn(Device, *mut Memory) -> c_int;

/// nvml.h: `nvmlMemory_t`.
#[repr(C)]
#[derive(Default)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// The GPUs of this machine; none: there is no such library, or no driver behind it.
pub(super) fn gpus() -> Vec<Gpu> {
    let (told, heard) = std::sync::mpsc::sync_channel(1);
    // A thread of its own: a call into a broken driver may never return.
    let looking = std::thread::Builder::new().name("muster-nvml".to_owned()).spawn(move || {
        let _nobody_waits_any_more = told.send(look(LIBRARY));
    });
    if let Err(error) = looking {
        warn!(%error, "cannot look for GPUs");
        return Vec::new();
    }
    heard.recv_timeout(LIMIT).unwrap_or_else(|_| {
        warn!(seconds = LIMIT.as_secs(), "the library of the NVIDIA driver does not answer; its GPUs are not offered");
        Vec::new()
    })
}

fn look(library: &CStr) -> Vec<Gpu> {
    let Some(library) = Library::open(library) else { return Vec::new() };
    match library.list() {
        Ok(gpus) => gpus,
        Err(why) => {
            warn!(why, "the library of the NVIDIA driver is there and its GPUs cannot be listed");
            Vec::new()
        }
    }
}

/// A loaded library. It is never unloaded: the driver's has threads of its own.
struct Library(*mut c_void);

#[expect(unsafe_code, reason = "a C library that is found at run time")]
impl Library {
    fn open(name: &CStr) -> Option<Self> {
        // SAFETY: `name` ends with a zero; what the library does when it is loaded is the driver's matter.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        (!handle.is_null()).then_some(Self(handle))
    }

    /// The function of this name, of the type that nvml.h gives it.
    fn function<F: Copy>(&self, name: &str) -> Result<F, String> {
        let missing = || format!("it has no function {name}");
        let text = CString::new(name).map_err(|_| missing())?;
        // SAFETY: the handle is open and the name ends with a zero.
        let found = unsafe { libc::dlsym(self.0, text.as_ptr()) };
        if found.is_null() || size_of::<F>() != size_of::<*mut c_void>() {
            return Err(missing());
        }
        // SAFETY: a function pointer has the size of `found`, as was checked, and each caller names the type that
        // nvml.h declares for this name.
        Ok(unsafe { std::mem::transmute_copy::<*mut c_void, F>(&found) })
    }

    fn list(&self) -> Result<Vec<Gpu>, String> {
        let init: Init = self.function("nvmlInit_v2")?;
        let shutdown: Init = self.function("nvmlShutdown")?;
        // SAFETY: nvmlInit_v2 takes nothing.
        ok("nvmlInit_v2", unsafe { init() })?;
        let listed = self.list_initialised();
        // SAFETY: it was initialised, and no handle of it is used after this.
        let _nothing_can_be_done = unsafe { shutdown() };
        listed
    }

    fn list_initialised(&self) -> Result<Vec<Gpu>, String> {
        let count: Count = self.function("nvmlDeviceGetCount_v2")?;
        let by_index: ByIndex = self.function("nvmlDeviceGetHandleByIndex_v2")?;
        let mut there = 0;
        // SAFETY: it writes one number.
        ok("nvmlDeviceGetCount_v2", unsafe { count(&raw mut there) })?;
        let mut gpus = Vec::new();
        for index in 0..there.min(GPUS_MAX) {
            let mut device: Device = std::ptr::null_mut();
            // SAFETY: it writes one handle.
            let answer = unsafe { by_index(index, &raw mut device) };
            if let Err(why) = ok("nvmlDeviceGetHandleByIndex_v2", answer) {
                // One that fell off the bus must not hide the others.
                warn!(index, why, "a GPU cannot be used and is not offered");
                continue;
            }
            gpus.push(Gpu {
                index,
                name: self.text("nvmlDeviceGetName", device).unwrap_or_default(),
                uuid: self.text("nvmlDeviceGetUUID", device).unwrap_or_default(),
                memory: self.memory(device).unwrap_or(0),
            });
        }
        Ok(gpus)
    }

    fn text(&self, name: &str, device: Device) -> Result<String, String> {
        let read: Text = self.function(name)?;
        let mut buffer = [0_u8; TEXT];
        let length = c_uint::try_from(TEXT - 1).map_err(|error| error.to_string())?;
        // SAFETY: it writes at most `length` bytes; one more stays zero.
        ok(name, unsafe { read(device, buffer.as_mut_ptr().cast::<c_char>(), length) })?;
        let text = CStr::from_bytes_until_nul(&buffer).map_err(|error| error.to_string())?;
        Ok(text.to_string_lossy().chars().filter(|c| !c.is_control()).collect())
    }

    fn memory(&self, device: Device) -> Result<u64, String> {
        let read: MemoryInfo = self.function("nvmlDeviceGetMemoryInfo")?;
        let mut memory = Memory::default();
        // SAFETY: it writes an `nvmlMemory_t`, which `Memory` is.
        ok("nvmlDeviceGetMemoryInfo", unsafe { read(device, &raw mut memory) })?;
        Ok(memory.total)
    }
}

fn ok(name: &str, answer: c_int) -> Result<(), String> {
    if answer == 0 { Ok(()) } else { Err(format!("{name} answers {answer}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_the_library_has_no_gpus_by_it() {
        assert!(look(c"libmuster-there-is-no-such.so.1").is_empty());
    }

    #[test]
    fn a_library_that_is_another_one_is_no_reason_to_fail() {
        assert!(look(c"libc.so.6").is_empty());
    }
}

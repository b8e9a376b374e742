/// Set to 1, keeps ONNX Runtime from reporting to its makers and from keeping identifiers in the user's folders; it is read once, before the
/// library can be told otherwise.
const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";

/// Turns ONNX Runtime's reports off, unless the user has set the variable. The first thing that a tool does.
#[allow(unsafe_code, reason = "the environment, before there are threads")]
pub(crate) fn turn_off() {
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: `main` calls this before the process has a second thread.
        unsafe { std::env::set_var(VARIABLE, "1") };
    }
}

"""Network boot as the daemon sees it: boot scripts per armed boot, and the phone-home that proves which host came up."""
